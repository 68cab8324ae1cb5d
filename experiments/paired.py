"""Differences between two models trained on the same samples from the same weights, seed by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """The mean of differences between paired seeds, with Student's interval of :data:`CONFIDENCE`."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @property
    def sign(self) -> Literal["lower", "higher", "unresolved"]:
        """``unresolved`` where the interval spans 0; equal differences, which tell nothing of their spread, are too."""
        if self.low <= 0 <= self.high or self.low == self.high:
            return "unresolved"
        return "lower" if self.high < 0 else "higher"


def paired(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Paired:
    """``ours - theirs`` over the seeds that both have; unbounded from fewer than two."""
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def interval(values: Sequence[float]) -> Paired:
    """The mean of independent values with its interval; unbounded from fewer than two, without width of equal ones."""
    from scipy import stats

    count = len(values)
    mean = math.fsum(values) / count if values else math.nan
    if count < 2:
        return Paired(mean, -math.inf, math.inf, tuple(values))
    if len(set(values)) == 1:
        return Paired(values[0], values[0], values[0], tuple(values))
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * math.sqrt(variance / count)
    return Paired(mean, mean - half, mean + half, tuple(values))
