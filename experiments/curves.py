"""Final losses over what training took: tokens, expert FLOPs, wall-clock.

Every point is a whole run with its own schedule, since a loss in the middle of a schedule is not what training for so
long would have reached. Between them, the loss is taken as linear in the logarithm of the quantity.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from .lab import Lab
from .speed import step_seconds
from .variants import VANILLA, Variant

Quantity = Literal["tokens", "expert_flops", "seconds"]
REACH = 1.15
"""How far outside of the runs a loss is still told, as a factor of the quantity."""


class Point(NamedTuple):
    """What one run took, and what it reached."""

    tokens: float
    expert_flops: float
    seconds: float
    """Modelled: its steps times the time of one, which is measured by itself."""
    loss: float


def step_times(lab: Lab, variants: Sequence[Variant]) -> dict[str, dict[int, float]]:
    """Seconds of a training step by variant and seed, and vanilla's: each seed's trained models in turns."""
    every = list(dict.fromkeys([VANILLA, *variants]))
    found: dict[str, dict[int, float]] = {variant.name: {} for variant in every}
    for seed in sorted(set.intersection(*(set(lab.records(variant)) for variant in every))):
        for name, timing in step_seconds(lab, variants, seed).items():
            found[name][seed] = timing.median
    return found


def curve(lab: Lab, lengths: Sequence[Variant], seconds: Mapping[int, float]) -> dict[int, list[Point]]:
    """By seed, a model's runs from the shortest to the longest; the seeds that have all of them, and a step's time."""
    runs = [lab.records(variant) for variant in lengths]
    seeds = sorted(set(seconds).intersection(*runs))
    return {
        seed: sorted(
            Point(one.tokens, one.expert_flops, one.steps * seconds[seed], one.loss) for one in (r[seed] for r in runs)
        )
        for seed in seeds
    }


def loss_at(amount: float, points: Sequence[Point], quantity: Quantity) -> float | None:
    """The final loss of a run that takes so much; None further outside of the runs than :data:`REACH`."""
    known = [(getattr(point, quantity), point.loss) for point in points]
    if not known[0][0] / REACH <= amount <= known[-1][0] * REACH:
        return None
    above = next((index for index, (place, _) in enumerate(known) if place >= amount), len(known) - 1)
    (less, before), (more, after) = known[max(above, 1) - 1], known[max(above, 1)]
    return before + (after - before) * math.log(amount / less) / math.log(more / less)


def needed(loss: float, points: Sequence[Point], quantity: Quantity) -> tuple[float, float]:
    """Between what and what a model needs to reach the loss: equal, but where it lies outside of the runs."""
    known = [(getattr(point, quantity), point.loss) for point in points]
    if known[0][1] <= loss:
        return 0.0, known[0][0]
    for (less, before), (more, after) in itertools.pairwise(known):
        if after <= loss < before:
            amount = less * (more / less) ** ((before - loss) / (before - after))
            return amount, amount
    return known[-1][0], math.inf


def losses_at_equal(
    ours: Mapping[int, list[Point]], theirs: Mapping[int, Point], quantity: Quantity
) -> dict[int, float]:
    """By seed, our loss at what their run took, where our runs tell it."""
    found = {
        seed: loss_at(getattr(theirs[seed], quantity), points, quantity)
        for seed, points in ours.items()
        if seed in theirs
    }
    return {seed: loss for seed, loss in found.items() if loss is not None}
