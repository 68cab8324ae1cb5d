import math
from dataclasses import replace

import pytest

from experiments.headline import loss_at, tokens_to_reach
from experiments.record import Record

RUN = Record("", 0, 1.0, "", "", {})
RUNS = [replace(RUN, tokens=tokens, loss=loss) for tokens, loss in ((1000, 5.0), (2000, 4.0), (4000, 3.5))]


@pytest.mark.parametrize(
    ("loss", "tokens"), [(5.0, 1000), (4.0, 2000), (4.5, 1000 * math.sqrt(2)), (3.75, 2000 * math.sqrt(2)), (3.5, 4000)]
)
def test_between_runs_the_loss_is_linear_in_the_logarithm_of_the_tokens(loss: float, tokens: float) -> None:
    assert tokens_to_reach(loss, RUNS) == pytest.approx(tokens)
    assert loss_at(tokens, RUNS) == pytest.approx(loss)


def test_a_loss_that_no_run_reached_is_not_extrapolated() -> None:
    assert tokens_to_reach(3.4, RUNS) is None
