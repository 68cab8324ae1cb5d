"""Numbers and outcomes as results say them."""

from typing import Literal

from .paired import Paired
from .result import Outcome


def nats(difference: Paired) -> str:
    """``+0.077 [+0.031, +0.123]``, and ``unresolved`` where the interval spans 0."""
    text = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    return f"{text} unresolved" if difference.sign == "unresolved" else text


def gain(ratio: float) -> str:
    """A speed-up as a gain: 1.25 is ``+25.0 %``."""
    return f"{100 * (ratio - 1):+.1f} %"


def agreement(difference: Paired, claimed: Literal["lower", "higher"]) -> Outcome:
    """Of a claim about a difference's sign."""
    if difference.sign == "unresolved":
        return "unresolved"
    return "agrees" if difference.sign == claimed else "disagrees"
