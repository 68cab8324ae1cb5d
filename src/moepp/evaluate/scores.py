"""What an evaluation found, and the averages over it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ACCURACIES = ("acc_norm", "acc", "exact_match")
"""Metrics that are shares of items and make up an average; the first that a task has stands for it."""
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Score:
    """One task's column of the table."""

    task: str
    """The harness's name of the task or group."""
    label: str
    metric: str
    score: float
    standard_error: float | None
    """None for a metric that has none, or a single item."""
    chance: float
    """What guessing scores: the mean of 1/choices over the items, 0 where there is nothing to choose from."""
    shots: int
    items: int
    requests_cut: int
    """Whose context was cut from the left to fit the model."""
    ffn_per_token: float
    """FFN experts that a token went through, on average over the layers and the tokens read for this task."""
    tokens: int
    metrics: dict[str, float]
    """All that the harness computed."""
    baselines: dict[str, float]
    """By name, what something that cannot understand the question scores."""
    published: float | None
    """The score in the paper's Table 4, of its 7B model after 1T tokens."""

    @property
    def is_accuracy(self) -> bool:
        return self.metric in ACCURACIES

    @property
    def near_chance(self) -> bool:
        """Whether guessing would do as well: not more than two standard errors above chance."""
        return self.score <= self.chance + STANDARD_ERRORS * (self.standard_error or 0.0)


@dataclass(frozen=True)
class Skipped:
    """A task that was not evaluated. It counts nowhere."""

    task: str
    label: str
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """Every task asked for is in one of the two."""

    scores: list[Score]
    skipped: list[Skipped]

    def average(self) -> float | None:
        """Over the tasks that were evaluated and whose metric is an accuracy; None without any."""
        return _mean([score.score for score in self.scores if score.is_accuracy])

    def average_standard_error(self) -> float | None:
        """Of :meth:`average`, the tasks being the ones they are: their own errors add up."""
        errors = [score.standard_error for score in self.scores if score.is_accuracy]
        known = [error for error in errors if error is not None]
        return math.hypot(*known) / len(known) if known and len(known) == len(errors) else None

    def average_above_chance(self) -> float | None:
        """The same without the tasks that this model does no better than chance on."""
        return _mean([score.score for score in self.scores if score.is_accuracy and not score.near_chance])


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None
