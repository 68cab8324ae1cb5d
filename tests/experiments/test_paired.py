import math

import pytest
from scipy import stats

from experiments.paired import interval, paired


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    ours, theirs = {0: 5.02, 1: 5.11, 2: 4.97}, {0: 4.95, 1: 4.99, 2: 4.96}
    found = paired(ours, theirs)
    expected = stats.ttest_rel([5.02, 5.11, 4.97], [4.95, 4.99, 4.96]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((0.07 + 0.12 + 0.01) / 3)


def test_only_seeds_that_both_have_are_paired() -> None:
    assert paired({0: 1.0, 1: 2.0, 2: 9.0}, {1: 1.0, 0: 0.5, 3: 0.0}).values == (0.5, 1.0)


@pytest.mark.parametrize(
    ("values", "sign"),
    [
        ([1.0, 1.1, 0.9], "higher"),
        ([-1.0, -1.1, -0.9], "lower"),
        ([1.0, -1.0, 0.5], "unresolved"),
        ([0.0] * 3, "unresolved"),
    ],
)
def test_a_sign_needs_an_interval_on_one_side_of_zero(values: list[float], sign: str) -> None:
    assert interval(values).sign == sign


def test_one_value_says_nothing_of_its_sign() -> None:
    found = interval([1.0])
    assert found.sign == "unresolved"
    assert math.isinf(found.high)
