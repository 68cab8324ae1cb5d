"""What the figures of the routing conclude from."""

import math

import pytest

from experiments.figure4 import spreads
from experiments.figure5 import correlations
from experiments.figure6 import same
from experiments.paired import Paired


def test_what_computes_most_is_chosen_on_the_other_seeds() -> None:
    per_token = {0: {"a": 1.6, "b": 1.4, "c": 1.0}, 1: {"a": 1.0, "b": 1.5, "c": 1.2}}
    assert spreads(per_token) == {0: pytest.approx(-0.2), 1: pytest.approx(-0.2)}
    alike = {seed: {"a": 1.6, "b": 1.4} for seed in range(3)}
    assert list(spreads(alike).values()) == pytest.approx([0.2] * 3)


def test_orders_are_compared_by_name() -> None:
    one, other = {"x": 1.0, "y": 2.0, "z": 3.0}, {"z": 30.0, "x": 10.0, "y": 20.0}
    assert correlations([one, other, {"x": 3.0, "y": 2.0, "z": 1.0}]) == pytest.approx([1.0, -1.0, -1.0])


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(-0.01, 0.02, "agrees"), (0.01, 0.02, "agrees"), (-0.01, 0.2, "unresolved"), (0.06, 0.2, "disagrees")],
)
def test_to_be_the_same_is_more_than_not_to_differ(low: float, high: float, outcome: str) -> None:
    assert same(Paired(0.0, low, high, (0.0,)), margin=0.05) == outcome
    assert same(Paired(0.0, -math.inf, math.inf, (0.0,)), margin=0.05) == "unresolved"
