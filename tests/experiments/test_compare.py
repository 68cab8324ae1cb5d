import math

import pytest

from experiments.compare import all_agree, differences, plus_minus
from experiments.layer_times import at_most, ratio
from experiments.paired import Paired, interval

LOWER, HIGHER, UNRESOLVED = (Paired(mean, mean - 1, mean + 1, ()) for mean in (-2.0, 2.0, 0.5))


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        ([LOWER, LOWER], "agrees"),
        ([LOWER, UNRESOLVED], "unresolved"),
        ([LOWER, UNRESOLVED, HIGHER], "disagrees"),
    ],
)
def test_a_claim_about_several_differences_needs_all_of_them(found: list[Paired], outcome: str) -> None:
    assert all_agree(found, "lower") == outcome


def test_differences_are_between_equal_seeds_in_memory_and_from_json() -> None:
    assert differences({0: 3.0, 1: 5.0, 2: 9.0}, {1: 1.0, 0: 2.0}) == [1.0, 4.0]
    assert differences({"1": 5.0}, {"0": 2.0, "1": 1.0}) == [4.0]


def test_plus_minus_is_half_of_the_interval() -> None:
    assert plus_minus(Paired(0.1, -0.15, 0.35, ())) == "+0.1000 ± 0.2500"
    assert math.isinf(interval([1.0]).high)
    assert plus_minus(interval([1.0])).endswith("± inf")


def test_a_ratio_of_times_is_unresolved_within_the_quartiles() -> None:
    found, spread = ratio({"ms": 2.2, "iqr_ms": 0.4}, {"ms": 2.0, "iqr_ms": 0.3})
    assert found == pytest.approx(1.1)
    assert spread == pytest.approx(1.1 * math.hypot(0.2 / 2.2, 0.15 / 2.0))
    assert at_most(found, spread, 1.024) == "unresolved"
    assert at_most(found, 0.01, 1.024) == "disagrees"
    assert at_most(1.0, 0.01, 1.024) == "agrees"
