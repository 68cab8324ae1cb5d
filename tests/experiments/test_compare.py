import math

import pytest

from experiments.compare import plus_minus
from experiments.layer_times import ratio
from experiments.paired import Paired, interval


def test_plus_minus_is_half_of_the_interval() -> None:
    assert plus_minus(Paired(0.1, -0.15, 0.35, ())) == "+0.1000 ± 0.2500"
    assert math.isinf(interval([1.0]).high)
    assert plus_minus(interval([1.0])).endswith("± inf")


def test_a_ratio_of_times_comes_with_half_of_both_quartile_distances() -> None:
    found = ratio({"ms": 2.2, "iqr_ms": 0.4}, {"ms": 2.0, "iqr_ms": 0.3})
    half = 1.1 * math.hypot(0.2 / 2.2, 0.15 / 2.0)
    assert (found.mean, found.low, found.high) == pytest.approx((1.1, 1.1 - half, 1.1 + half))
