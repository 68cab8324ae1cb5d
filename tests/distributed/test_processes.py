"""The tests' own harness: it returns what ranks return, and names the ranks that fail, die or hang."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from .processes import ProcessFailed, run_processes


def _sum_of_ranks() -> float:
    total = torch.tensor(float(dist.get_rank()))
    dist.all_reduce(total)
    return total.item()


def test_ranks_of_a_job_talk_to_each_other() -> None:
    assert run_processes(4, _sum_of_ranks) == [6.0] * 4


def _fail(how: str) -> None:
    if dist.get_rank() == 1:
        if how == "raise":
            raise ValueError("no")
        if how == "die":
            os._exit(9)
        time.sleep(60)


@pytest.mark.parametrize(
    ("how", "said"), [("raise", "rank 1: .*ValueError: no"), ("die", "rank 1: died"), ("hang", "rank 1: still running")]
)
def test_a_rank_that_fails_is_named(how: str, said: str) -> None:
    with pytest.raises(ProcessFailed, match=f"(?s){said}"):
        run_processes(2, _fail, how, timeout=2.0)
