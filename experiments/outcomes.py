"""What a number with its interval makes of a claim.

A claim holds if the whole interval bears it out, fails if the whole interval contradicts it, and is unresolved else: in
particular where the interval is unbounded, or has no width because equal values tell nothing of their spread.
"""

import math
from collections.abc import Iterable

from .paired import Paired
from .result import Outcome


def within(found: Paired, low: float, high: float) -> Outcome:
    """Of a claim that a value lies in a range."""
    if found.low == found.high:
        return "unresolved"
    if low <= found.low and found.high <= high:
        return "agrees"
    return "disagrees" if found.high < low or found.low > high else "unresolved"


def below(found: Paired, bound: float = 0.0) -> Outcome:
    """Of a claim that a value is at most the bound."""
    return within(found, -math.inf, bound)


def above(found: Paired, bound: float = 0.0) -> Outcome:
    """Of a claim that a value is at least the bound."""
    return within(found, bound, math.inf)


def all_of(outcomes: Iterable[Outcome]) -> Outcome:
    """Of a claim that is several: one that fails is enough to disagree."""
    found = set(outcomes)
    if "disagrees" in found:
        return "disagrees"
    return "agrees" if found == {"agrees"} else "unresolved"
