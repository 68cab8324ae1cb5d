"""kill -9 at any moment, SIGTERM and Ctrl-C: the run resumes and ends as if nothing had happened, bit for bit."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moepp.train import checkpoint

from .tiny import Runner, assert_same_run, recipe_of, write_recipe

LONG = {"max_steps": 60, "save_steps": 5, "logging_steps": 1, "eval_steps": 20}
SECONDS = 120  # for what takes a few, on a machine that does other things, too


@pytest.fixture(scope="module")
def long(shared: Runner) -> Path:
    """The uninterrupted run that all drills must end like."""
    shared.train("long", *(f"training.{name}={value}" for name, value in LONG.items()))
    return shared.out("long")


@pytest.fixture
def recipe(tmp_path: Path, texts: str) -> Path:
    recipe = recipe_of(texts, tmp_path / "run")
    recipe["training"] |= LONG
    return write_recipe(tmp_path / "recipe.yaml", recipe)


class Process:
    """``moepp`` in a process of its own; killed at the end of a test that failed."""

    def __init__(self, command: list[str]) -> None:
        # One thread, as in the reference; and where this Python's moepp is found by its name.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_for(self, event: Callable[[], bool]) -> bool:
        """Waits for something to be seen in the run's folder; False if the process ended before."""
        deadline = time.monotonic() + SECONDS
        while not event():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, "the process is stuck"
            time.sleep(0.001)
        return True

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """Sends the signal, if any; the exit code and what was written."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out, err


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], Process]]:
    started: list[Process] = []

    def run(command: list[str]) -> Process:
        started.append(Process(command))
        return started[-1]

    yield run
    for process in started:
        process.process.kill()
        process.process.wait()


def train_command(recipe: Path) -> list[str]:
    resume = ["--resume"] if checkpoint.checkpoints(recipe.parent / "run") else []
    return [sys.executable, "-m", "moepp", "train", str(recipe), *resume]


def newest(run: Path) -> int:
    return max((checkpoint.step_of(path) for path in checkpoint.checkpoints(run)), default=0)


def written(run: Path) -> int:
    """When the run's recipe was written, which is the first thing that a process does to its folder."""
    recipe = run / "recipe.yaml"
    return recipe.stat().st_mtime_ns if recipe.exists() else 0


def in_a_save(process: Process, run: Path) -> bool:
    """Whether the process is in the middle of writing a checkpoint; if so, it stays there."""
    if not any(checkpoint.staging(run).glob("checkpoint-*")):
        return False
    process.process.send_signal(signal.SIGSTOP)
    time.sleep(0.01)  # until it has stopped
    if any(checkpoint.staging(run).glob("checkpoint-*")):
        return True
    process.process.send_signal(signal.SIGCONT)
    return False


def drill(recipe: Path, start: Callable[[list[str]], Process], kills: int, seed: int) -> list[str]:
    """Kills a run so many times, in turn inside a save, at a random moment and while a resumed run sets out, and lets
    it end. Returns the moments; fewer if the run was faster."""
    run, generator, moments = recipe.parent / "run", random.Random(seed), []
    for number in range(kills):
        begun, before = newest(run), written(run)
        process = start(train_command(recipe))
        moment = ("save", "random", "start")[number % 3]
        if moment == "save":
            alive = process.wait_for(lambda begun=begun, p=process: newest(run) > begun and in_a_save(p, run))
        elif moment == "random":
            alive = process.wait_for(lambda begun=begun: newest(run) > begun)
            time.sleep(generator.uniform(0, 0.2))
        else:
            alive = process.wait_for(lambda before=before: written(run) != before)
        code, _, err = process.end(signal.SIGKILL)
        if not alive or code == 0:
            assert code == 0, err
            break
        assert code == -signal.SIGKILL
        moments.append(moment)
        for path in checkpoint.checkpoints(run):
            checkpoint.verify(path)
    code, _, err = start(train_command(recipe)).end()
    assert code == 0, err
    return moments


def test_three_kills_one_of_them_inside_a_save(recipe: Path, start: Callable[[list[str]], Process], long: Path) -> None:
    assert drill(recipe, start, kills=3, seed=0) == ["save", "random", "start"]
    assert_same_run(recipe.parent / "run", long)


@pytest.mark.drill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(1, 21))
def test_a_hundred_kills(recipe: Path, start: Callable[[list[str]], Process], long: Path, seed: int) -> None:
    """Twenty runs, each killed five times."""
    drill(recipe, start, kills=5, seed=seed)
    assert_same_run(recipe.parent / "run", long)


def test_signals_save_and_print_the_command_that_goes_on(
    recipe: Path, start: Callable[[list[str]], Process], long: Path
) -> None:
    run = recipe.parent / "run"
    command = [sys.executable, "-m", "moepp", "train", str(recipe)]
    for number, exit_code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        begun = newest(run)
        process = start(command)
        assert process.wait_for(lambda begun=begun: newest(run) > begun)
        code, out, err = process.end(number)
        assert code == exit_code, err
        said = re.search(rf"^{number.name}: saved; to go on: (moepp train .*--resume)$", out, re.MULTILINE)
        assert said, out
        assert "Traceback" not in err
        assert int(re.findall(r"^step +(\d+)/60", out, re.MULTILINE)[-1]) == newest(run)
        command = ["sh", "-c", f"exec {said[1]}"]
    code, _, err = start(command).end()
    assert code == 0, err
    assert_same_run(run, long)
