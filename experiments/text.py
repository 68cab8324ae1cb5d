"""Numbers as results say them."""

import math

from .paired import Paired


def said(found: Paired, unit: str = "", *, times: float = 1.0, digits: int = 4) -> str:
    """A difference: ``+0.077 [+0.031, +0.123]``, and ``unresolved`` where the interval spans 0.

    Args:
        unit: follows; in tables the head says it.
        times: 100 for per cent.
    """
    text = level(found, unit, times=times, digits=digits, sign="+")
    return f"{text}, unresolved" if found.values and found.sign == "unresolved" else text


def level(found: Paired, unit: str = "", *, times: float = 1.0, digits: int = 4, sign: str = "") -> str:
    """A value that is no difference: ``0.93 [0.91, 0.95]``."""
    if not found.values:
        return "not measured"
    after = f" {unit}" if unit else ""
    mean, low, high = (f"{times * value:{sign}.{digits}f}" for value in (found.mean, found.low, found.high))
    return f"{mean}{after} (one seed)" if math.isinf(found.low) else f"{mean} [{low}, {high}]{after}"


def nats(difference: Paired) -> str:
    """A difference of losses."""
    return said(difference, "nats per token")


def gain(ratio: float) -> str:
    """A speed-up as a gain: 1.25 is ``+25.0 %``."""
    return f"{100 * (ratio - 1):+.1f} %"
