"""What an interval makes of a claim."""

import math

import pytest

from experiments.outcomes import above, all_of, below, within
from experiments.paired import Paired, interval
from experiments.result import Outcome
from experiments.text import level, nats, said


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.01, 0.02, "agrees"),
        (0.01, 0.02, "agrees"),
        (0.01, 0.2, "unresolved"),
        (-0.2, 0.2, "unresolved"),
        (0.06, 0.2, "disagrees"),
        (-math.inf, math.inf, "unresolved"),
        (0.0, 0.0, "unresolved"),
    ],
)
def test_a_range_is_kept_to_or_left_by_the_whole_interval(low: float, high: float, outcome: Outcome) -> None:
    assert within(Paired(0.0, low, high, (0.0,)), -0.05, 0.05) == outcome


def test_bounds_are_from_above_and_from_below() -> None:
    found = Paired(2.0, 1.0, 3.0, ())
    assert [below(found), above(found)] == ["disagrees", "agrees"]
    assert [below(found, 4), below(found, 2), above(found, 4)] == ["agrees", "unresolved", "disagrees"]


@pytest.mark.parametrize("values", [[], [-1.0], [-1.0, -1.0, -1.0]])
def test_without_a_spread_nothing_is_resolved(values: list[float]) -> None:
    assert below(interval(values)) == "unresolved"
    assert interval(values).sign == "unresolved"


@pytest.mark.parametrize(
    ("parts", "outcome"),
    [
        (["agrees", "agrees"], "agrees"),
        (["agrees", "unresolved"], "unresolved"),
        (["agrees", "unresolved", "disagrees"], "disagrees"),
    ],
)
def test_a_claim_of_several_parts_needs_all_of_them(parts: list[Outcome], outcome: Outcome) -> None:
    assert all_of(parts) == outcome


def test_numbers_say_their_unit_and_what_is_unresolved() -> None:
    found = Paired(0.01, -0.02, 0.04, (0.0, 0.02))
    assert nats(found) == "+0.0100 [-0.0200, +0.0400] nats per token, unresolved"
    assert said(found, "points", times=100, digits=1) == "+1.0 [-2.0, +4.0] points, unresolved"
    assert level(found, digits=2) == "0.01 [-0.02, 0.04]"
    assert said(interval([0.5])) == "+0.5000 (one seed), unresolved"
    assert said(interval([])) == "not measured"
