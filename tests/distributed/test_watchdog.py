"""A rank that hangs, stops or dies in a loop of collectives: the others say which one, once, and end."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import TrainerControl, TrainerState

from moepp.errors import ConfigError, MoEPPError
from moepp.train import ranks
from moepp.train.watchdog import Watchdog

from .processes import ProcessFailed, run_processes

STEPS = 4
SAVED = "no checkpoint had been written"


def _train(run: Path, happening: str, timeout: float) -> Any:
    """A training whose rank 1 has something happen to it in its third step; what it raises and who prints that."""
    job = ranks.job()
    assert job is not None
    os.dup2(os.open(run / f"said-{job.rank}", os.O_WRONLY | os.O_CREAT), 2)
    watchdog = Watchdog(run, ranks.Job(job.store, job.rank, job.world_size, job.timeout * timeout / 60))
    event: Any = {"args": None, "control": TrainerControl()}
    try:
        with watchdog.watching():
            for step in range(STEPS):
                event["state"] = TrainerState(global_step=step)
                (watchdog.on_step_end if step else watchdog.on_train_begin)(**event)
                if step == 2 and job.rank == 1:
                    happen(happening)
                watchdog.on_step_begin(**event)
                dist.all_reduce(torch.ones(1))
                watchdog.on_pre_optimizer_step(**event)
                if happening == "long validation":
                    for _ in range(4):
                        time.sleep(timeout / 3)
                        watchdog.on_prediction_step(**event)
    except MoEPPError as error:
        return str(error), error.said_by
    return "trained", None


def happen(what: str) -> None:
    if what == "sleep":
        time.sleep(60)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "fail":
        raise ConfigError("no")


def said(run: Path) -> list[str]:
    return [(run / f"said-{rank}").read_text() for rank in range(3)]


def test_a_rank_that_moves_is_left_alone(tmp_path: Path) -> None:
    assert run_processes(2, _train, tmp_path, "long validation", 0.5) == [("trained", None)] * 2
    assert not (tmp_path / "stacks").exists()


@pytest.mark.parametrize(
    ("happening", "line"),
    [
        ("sleep", "rank 1 has not moved for 2 s: fetching samples, step 3, in distributed/test_watchdog.py:"),
        ("stop", "rank 1 does not answer (stopped, killed, or the machine is gone); "),
    ],
)
def test_a_rank_that_hangs_is_named_once_and_all_end(tmp_path: Path, happening: str, line: str) -> None:
    with pytest.raises(ProcessFailed) as error:
        run_processes(3, _train, tmp_path, happening, 1.5, timeout=15.0)
    ended = ["died without a word"] * 3
    if happening == "stop":
        ended[1] = "still running"  # until its launcher kills it
    assert sorted(str(error.value).splitlines()) == [f"rank {rank}: {how}" for rank, how in enumerate(ended)]
    first, *others = said(tmp_path)
    assert first.startswith(f"error: {line}")
    assert "; the others wait in forward/backward, step 3; stacks in " in first
    assert first.count("\n") == 1
    assert others == ["", ""]
    stacks = {path.name: path.read_text() for path in (tmp_path / "stacks").iterdir()}
    assert "all_reduce" in stacks["rank-0.txt"]
    assert ("rank-1.txt" in stacks) == (happening == "sleep")


def _survive(run: Path) -> None:
    """What the ranks that are left see of one that dies goes into a file, for its job counts as failed."""
    message, said_by = _train(run, "die", 5.0)
    (run / f"raised-{dist.get_rank()}").write_text(f"{said_by}: {message}")


def test_a_rank_that_dies_is_named_by_one_of_those_that_are_left(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match=r"^rank 1: died"):
        run_processes(3, _survive, tmp_path)
    first, second = [(tmp_path / f"raised-{rank}").read_text() for rank in (0, 2)]
    assert first == second
    said_by, message = first.split(": ", 1)
    assert said_by in "02"
    assert message == f"rank 1 ended at step 3, so that all ranks end; {SAVED}"


def test_a_rank_that_fails_speaks_for_all(tmp_path: Path) -> None:
    """The others end because it did, and say nothing."""
    ended = f"rank 1 ended at step 3, so that all ranks end; {SAVED}"
    assert run_processes(3, _train_then_leave, tmp_path) == [(ended, 1), ("no", 1), (ended, 1)]


def _train_then_leave(run: Path) -> Any:
    """A rank's process ends after its error, which closes its connections."""
    result = _train(run, "fail", 5.0)
    if dist.get_rank() == 1:
        dist.destroy_process_group()
    return result
