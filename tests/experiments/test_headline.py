"""Losses between whole runs, and what a model needs to reach one."""

import math

import pytest

from experiments.curves import Point, loss_at, losses_at_equal, needed
from experiments.headline import at_most

POINTS = [Point(tokens, 10 * tokens, tokens / 10, loss) for tokens, loss in ((1000, 5.0), (2000, 4.0), (4000, 3.5))]


@pytest.mark.parametrize(
    ("loss", "tokens"), [(4.0, 2000), (4.5, 1000 * math.sqrt(2)), (3.75, 2000 * math.sqrt(2)), (3.5, 4000)]
)
def test_between_runs_the_loss_is_linear_in_the_logarithm(loss: float, tokens: float) -> None:
    assert needed(loss, POINTS, "tokens") == pytest.approx((tokens, tokens))
    assert needed(loss, POINTS, "expert_flops") == pytest.approx((10 * tokens, 10 * tokens))
    assert loss_at(tokens / 10, POINTS, "seconds") == pytest.approx(loss)


def test_outside_of_the_runs_only_a_bound_is_told() -> None:
    assert needed(3.4, POINTS, "tokens") == (4000, math.inf)
    assert needed(5.0, POINTS, "tokens") == (0.0, 1000)
    assert loss_at(5000, POINTS, "tokens") is None
    assert loss_at(4400, POINTS, "tokens") == pytest.approx(3.5 - 0.5 * math.log2(1.1))


def test_losses_are_compared_at_what_the_same_seed_s_run_took() -> None:
    theirs = {0: Point(2000, 10_000, 1, 4.2), 1: Point(9000, 0, 0, 4.0), 2: Point(2000, 0, 0, 4.0)}
    assert losses_at_equal({0: POINTS, 1: POINTS}, theirs, "tokens") == {0: 4.0}
    assert losses_at_equal({0: POINTS}, theirs, "expert_flops") == {0: 5.0}


@pytest.mark.parametrize(
    ("shares", "outcome"),
    [
        ([(0.60, 0.60), (0.61, 0.61), (0.62, 0.62)], "agrees"),
        ([(0.60, 0.60), (0.74, 0.74), (0.70, 0.70)], "unresolved"),
        ([(0.90, 0.90), (0.91, 0.91), (1.5, math.inf)], "disagrees"),
        ([(0.70, 0.70), (0.71, 0.71), (1.5, math.inf)], "unresolved"),
        ([(0.0, 0.5), (0.71, 0.71)], "agrees"),
        ([(0.0, 0.8), (0.71, 0.71)], "unresolved"),
    ],
)
def test_seeds_outside_of_the_runs_decide_only_where_all_lie_on_one_side(
    shares: list[tuple[float, float]], outcome: str
) -> None:
    assert at_most(dict(enumerate(shares)), 0.75) == outcome
