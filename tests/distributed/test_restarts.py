"""kill -9 of ranks at any moment: the job starts again and ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from moepp.train import checkpoint

from ..train.tiny import assert_same_run, at_step, logged, write_texts
from .agent import Agent, make_recipe, newest
from .processes import ProcessFailed

KILLED = "rank 1: died without a word"


def die(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_in_a_step() -> AbstractContextManager[Any]:
    return at_step(6, die, "on_pre_optimizer_step")


def _kill_in_a_save() -> AbstractContextManager[Any]:
    """Of the second checkpoint, by the thread that writes, before this rank's files are sealed."""
    seal, calls = checkpoint.seal, 0

    def stop(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return die() if calls == 2 else seal(*args)

    return mock.patch.object(checkpoint, "seal", stop)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_texts(tmp_path_factory.mktemp("texts") / "texts")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, texts: str) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert Agent(make_recipe(folder, texts)).start() == [0, 0]
    return folder / "run"


@pytest.fixture
def agent(tmp_path: Path, texts: str) -> Agent:
    return Agent(make_recipe(tmp_path, texts))


@pytest.mark.parametrize(("happens", "saved"), [(_kill_in_a_step, [4]), (_kill_in_a_save, [4])])
def test_a_killed_rank_starts_again_with_the_job(
    agent: Agent, undisturbed: Path, happens: Callable[[], Any], saved: list[int]
) -> None:
    """The same command goes on from the newest whole checkpoint, and ends on the same numbers, bit for bit."""
    run = agent.recipe.parent / "run"
    with pytest.raises(ProcessFailed, match=KILLED):
        agent.start(happens=happens)
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(run)] == saved
    assert agent.start() == [0, 0]
    assert_same_run(run, undisturbed)


def test_a_killed_job_goes_on_with_one_process(agent: Agent, tmp_path: Path, texts: str) -> None:
    """Resumed by hand, with all experts at home, it ends on the losses of two processes that nothing disturbed."""
    (tmp_path / "reference").mkdir()
    reference, run = tmp_path / "reference" / "run", agent.recipe.parent / "run"
    arguments = ("model.attention_dropout=0.0", "training.max_steps=8")  # which processes draw differently
    assert Agent(make_recipe(reference.parent, texts)).start(*arguments) == [0, 0]
    with pytest.raises(ProcessFailed, match=KILLED):
        agent.start(*arguments, happens=_kill_in_a_step)
    assert newest(run) == 4
    assert Agent(agent.recipe).start(*arguments, "distributed.ep_size=1", "--resume", world=1) == [0]
    for name in ("lm_loss", "eval_loss"):
        ended = [(entry["step"], entry[name]) for entry in logged(run, name)]
        expected = [(entry["step"], entry[name]) for entry in logged(reference, name)]
        assert [step for step, _ in ended] == [step for step, _ in expected]
        assert [loss for _, loss in ended] == pytest.approx([loss for _, loss in expected], rel=1e-5)
    assert ended[-1][0] == 8


def test_a_signal_to_one_rank_stops_all_after_the_same_step(agent: Agent, undisturbed: Path) -> None:
    """With a whole checkpoint, from which the job goes on."""
    run = agent.recipe.parent / "run"
    assert agent.start(happens=_terminate_in_a_step) == [128 + signal.SIGTERM] * 2
    assert [entry["step"] for entry in logged(run)] == [1, 2, 3, 4, 5, 6, 7]
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(run)] == [4, 7]
    assert agent.start() == [0, 0]
    assert_same_run(run, undisturbed)


def _terminate_in_a_step() -> AbstractContextManager[Any]:
    return at_step(6, lambda _: os.kill(os.getpid(), signal.SIGTERM), "on_pre_optimizer_step")


def test_a_job_that_is_killed_before_its_first_checkpoint_begins_anew(agent: Agent, undisturbed: Path) -> None:
    run = agent.recipe.parent / "run"
    with pytest.raises(ProcessFailed, match=KILLED):
        agent.start(happens=_kill_in_the_second_step)
    assert (run / "recipe.yaml").exists()
    assert checkpoint.checkpoints(run) == []
    assert agent.start() == [0, 0]
    assert_same_run(run, undisturbed)


def _kill_in_the_second_step() -> AbstractContextManager[Any]:
    return at_step(1, die, "on_step_begin")


def test_a_restart_takes_nobody_elses_folder(agent: Agent, texts: str) -> None:
    """Neither one that it was refused, nor one in which another job trains."""
    run = agent.recipe.parent / "run"
    run.mkdir()
    (run / "notes.txt").touch()
    for _ in range(2):
        assert agent.start() == [2, 2]
        assert agent.said.startswith(f"error: output_dir='{run}' is already in use; ")
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_a_damaged_checkpoint_is_passed_over_by_a_restart(agent: Agent, undisturbed: Path) -> None:
    run = agent.recipe.parent / "run"
    with pytest.raises(ProcessFailed, match=KILLED):
        agent.start(happens=partial(_kill_after_the_second_save, run))
    (run / "checkpoint-8" / "trainer_state.json").write_text("{}")
    assert agent.start() == [0, 0]
    assert_same_run(run, undisturbed)


def _kill_after_the_second_save(run: Path) -> AbstractContextManager[Any]:
    """Which goes on in the background for as long as the machine takes."""

    def die_once_saved(_: object) -> None:
        while not (run / "checkpoint-8").exists():
            time.sleep(0.01)
        die()

    return at_step(11, die_once_saved, "on_step_begin")


def test_resuming_with_another_model(agent: Agent) -> None:
    assert agent.start("training.max_steps=4") == [0, 0]
    assert agent.start("training.max_steps=8", "model.tau=0.5", "--resume") == [2, 2]
    assert agent.said.startswith("error: model.tau=0.5 differs from 0.75, with which ")
    assert "resume with the same value, or start a new run in another output_dir" in agent.said


# With torchrun itself


class Job:
    """``torchrun … -m moepp train``; killed with its workers at the end of a test that failed."""

    def __init__(self, recipe: Path, restarts: int) -> None:
        self.recipe = recipe
        self.err = (recipe.parent / "err").open("w+")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
                *("--shutdown-timeout=5", f"--max-restarts={restarts}", "-m", "moepp", "train", str(recipe)),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=self.err,
        )

    def workers(self) -> dict[int, int]:
        """Process ids by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (folder / "environ").read_text().split("\0") if parent == self.process.pid else []
            except OSError:  # it has ended meanwhile
                continue
            found |= {int(v.removeprefix("RANK=")): int(folder.name) for v in variables if v.startswith("RANK=")}
        return found

    def wait_for(self, event: Callable[[], bool]) -> bool:
        """Waits for something to be seen; False if the job ended before."""
        deadline = time.monotonic() + 120
        while not event():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.005)
        return True

    def end(self) -> int:
        try:
            return self.process.wait(timeout=240)
        finally:
            self.process.kill()
            for pid in self.workers().values():
                os.kill(pid, signal.SIGKILL)

    def said(self) -> str:
        self.err.seek(0)
        return self.err.read()


def test_torchrun_restarts(tmp_path: Path, texts: str, undisturbed: Path) -> None:
    """Killed after the first of twelve saves, which change no number and keep the run from ending before."""
    run, job = tmp_path / "run", Job(make_recipe(tmp_path, texts, save_steps=1), restarts=1)
    assert job.wait_for(lambda: newest(run) >= 1), job.said()
    os.kill(job.workers()[1], signal.SIGKILL)
    assert job.end() == 0, job.said()
    assert_same_run(run, undisturbed)
    assert "error: rank 1 ended at step " in job.said()


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_torchrun_ends_a_rank_that_is_stopped(tmp_path: Path, texts: str) -> None:
    run, job = tmp_path / "run", Job(make_recipe(tmp_path, texts, max_steps=400), restarts=0)
    assert job.wait_for(lambda: newest(run) >= 4)
    os.kill(job.workers()[1], signal.SIGSTOP)
    assert job.end() == 1
    lines = [line for line in job.said().splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert lines[0].startswith("error: rank 1 does not answer (stopped, killed, or the machine is gone); ")


@pytest.mark.drill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10))
def test_random_ranks_die_at_random_moments(tmp_path: Path, texts: str, seed: int) -> None:
    """Five kills a run, of one rank or both, while it sets out, trains and saves."""
    reference = tmp_path / "reference"
    reference.mkdir()
    steps = {"max_steps": 60, "save_steps": 3, "eval_steps": 20}
    assert Agent(make_recipe(reference, texts, **steps)).start() == [0, 0]
    generator, run = random.Random(seed), tmp_path / "run"
    job, kills = Job(make_recipe(tmp_path, texts, **steps), restarts=5), 0
    for _ in range(5):
        begun, before = newest(run), set(job.workers().values())
        if not job.wait_for(
            lambda b=begun, old=before: newest(run) > b and not old & set(job.workers().values()) - old
        ):
            break
        time.sleep(generator.uniform(0, 0.3))
        victims = generator.choice([[0], [1], [0, 1]])
        for rank, pid in job.workers().items():
            if rank in victims:
                os.kill(pid, signal.SIGKILL)
                kills += 1
        job.wait_for(lambda: len(job.workers()) < 2)
        job.wait_for(lambda: len(job.workers()) == 2)
    assert job.end() == 0, job.said()
    assert kills > 0
    assert_same_run(run, reference / "run")
