"""What goes wrong with a job of several processes: one line, every rank ends with a code other than 0, nobody hangs."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

from moepp import cli
from moepp.train import ranks
from moepp.train.trainer import MoEPPTrainer

from ..train.tiny import write_recipe, write_texts
from .processes import ProcessFailed, run_processes
from .runs import parallel_recipe

Ended = tuple[str, ...]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_texts(tmp_path_factory.mktemp("texts") / "texts")


@pytest.fixture
def recipe(tmp_path: Path, texts: str) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", parallel_recipe(texts, tmp_path / "run"))


# What a rank's process goes through, by name: it has to be sent to the process.


def _other_code() -> AbstractContextManager[Any]:
    versions = ranks.code_versions() | {"moepp's source files (digest)": "0123456789abcdef"}
    return mock.patch.object(ranks, "code_versions", return_value=versions)


def _no_gloo() -> AbstractContextManager[Any]:
    return mock.patch.object(dist, "is_gloo_available", return_value=False)


def _sleep_while_fetching() -> AbstractContextManager[Any]:
    fetch = MoEPPTrainer.get_batch_samples

    def asleep(self: MoEPPTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1:
            time.sleep(600)
        return fetch(self, *args, **kwargs)

    return mock.patch.object(MoEPPTrainer, "get_batch_samples", asleep)


def _fail_while_fetching() -> AbstractContextManager[Any]:
    return mock.patch.object(MoEPPTrainer, "get_batch_samples", side_effect=OSError("the disk with the data is gone"))


def _moepp(
    port: int, folder: Path, arguments: list[list[str]], happen: dict[int, Callable[[], Any]]
) -> int | str | None:
    """``moepp`` as torchrun starts it, with this rank's arguments; its exit code. What it says goes to files."""
    rank = int(os.environ["RANK"])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if not arguments[rank]:
        return  # this rank is missing
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["moepp", *arguments[rank]]
    with happen.get(rank, nullcontext)():
        try:
            cli.main()
        except SystemExit as end:
            (folder / f"code-{rank}").write_text(str(end.code))
            sys.stderr.flush()
            os._exit(1)  # which closes this rank's connections, as the end of a process of its own does


def start(
    port: int, recipe: Path, *overrides: str, world: int = 2, differs: list[str] | None = None, **happen: Any
) -> list[Ended]:
    """Trains, which fails. Every rank's exit code, if it exits by itself, and what it writes to its two outputs.

    Args:
        differs: the last rank's arguments instead of the others'.
        happen: what the rank's process goes through, as ``rank_1=…``.
    """
    common = ["train", str(recipe), *overrides]
    arguments = [common] * (world - 1) + [common if differs is None else differs]
    by_rank = {int(name.removeprefix("rank_")): what for name, what in happen.items()}
    with pytest.raises(ProcessFailed) as ended:
        run_processes(world, _moepp, port, recipe.parent, arguments, by_rank, init=False, timeout=60, grace=15)
    assert "still running" not in str(ended.value)
    return [tuple(read(recipe, name, rank) for name in ("code", "out", "err")) for rank in range(world)]


def read(recipe: Path, name: str, rank: int) -> str:
    path = recipe.parent / f"{name}-{rank}"
    return "\n".join(line for line in path.read_text().splitlines() if "[W" not in line) if path.exists() else ""


def assert_refused(ended: list[Ended], message: str) -> None:
    """Rank 0 said this and nothing else, the others nothing at all."""
    assert [code for code, _, _ in ended] == ["2"] * len(ended)
    assert [err for _, _, err in ended] == [f"error: {message}"] + [""] * (len(ended) - 1)
    assert all(out == "" for _, out, _ in ended)


def test_different_recipes(port: int, recipe: Path) -> None:
    differs = ["train", str(recipe), "optimization.learning_rate=1e-3"]
    assert_refused(
        start(port, recipe, world=3, differs=differs),
        "rank 2 has optimization.learning_rate=0.001 and rank 0 0.005; start all ranks with the same recipe",
    )


def test_a_recipe_that_one_machine_does_not_have(port: int, recipe: Path) -> None:
    ended = start(port, recipe, differs=["train", "no/such.yaml"])
    assert_refused(ended, "rank 1: recipe 'no/such.yaml' does not exist; check the path")


def test_a_recipe_that_is_wrong_everywhere(port: int, recipe: Path) -> None:
    ended = start(port, recipe, "model.tau=-1", world=3)
    assert [code for code, _, _ in ended] == ["2", "2", "2"]
    assert ended[0][2].startswith("error: moe.tau=-1 must be a number > 0; ")
    assert [err for _, _, err in ended[1:]] == ["", ""]


def test_different_code(port: int, recipe: Path) -> None:
    digest = ranks.code_versions()["moepp's source files (digest)"]
    assert_refused(
        start(port, recipe, rank_1=_other_code),
        f"rank 1 has moepp's source files (digest)='0123456789abcdef' and rank 0 '{digest}'; "
        "install the same versions on all machines",
    )


def test_gloo_unavailable(port: int, recipe: Path) -> None:
    ended = start(port, recipe, rank_0=_no_gloo, rank_1=_no_gloo)
    assert [code for code, _, _ in ended] == ["2", "2"]
    assert "was built without gloo, which several processes on cpu need; install a build" in ended[0][2]
    assert ended[1][2] == ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "distributed.fsdp_size=4",
            "distributed.fsdp_size=4 x distributed.replicate_size=1 needs 4 processes and there are 3; "
            "change the sizes, or start so many: torchrun --nproc-per-node 4 -m moepp train …",
        ),
        (
            "distributed.ep_size=3",
            "distributed.ep_size=3 does not divide model.num_ffn_experts=4; "
            "choose a divisor, so that every process owns as many",
        ),
    ],
)
def test_sizes_that_do_not_fit(port: int, recipe: Path, override: str, message: str) -> None:
    assert_refused(start(port, recipe, override, world=3), message)


def test_a_missing_rank(port: int, recipe: Path) -> None:
    (code, _, err), (absent, _, _) = start(port, recipe, "distributed.timeout_seconds=2", differs=[])
    assert (code, absent) == ("2", "")
    assert err.startswith("error: only 1 of 2 processes arrived within 2 s: rank 1 did not; ")
    assert err.count("\n") == 0


def test_a_folder_in_use(port: int, recipe: Path) -> None:
    run = recipe.parent / "run"
    run.mkdir()
    (run / "notes.txt").touch()
    message = f"output_dir='{run}' is already in use; choose another, remove it, or continue its run with --resume"
    assert_refused(start(port, recipe), message)


def test_a_rank_that_fails_while_training(port: int, recipe: Path) -> None:
    """It says why itself; the others say nothing, and end, too."""
    ended = start(port, recipe, rank_1=_fail_while_fetching)
    assert [code for code, _, _ in ended] == ["2", "2"]
    message = "training stopped: the disk with the data is gone; no checkpoint had been written"
    assert [err for _, _, err in ended] == ["", f"error: rank 1: {message}"]


def test_a_rank_that_hangs_while_training(port: int, recipe: Path) -> None:
    (_, _, said), (_, _, other) = start(port, recipe, "distributed.timeout_seconds=3", rank_1=_sleep_while_fetching)
    assert said.startswith(
        "error: rank 1 has not moved for 3 s: fetching samples, step 2, in distributed/test_drills.py:"
    )
    assert "; the others wait in fetching samples, step 2; stacks in " in said
    assert said.count("\n") == 0
    assert other == ""
    assert "asleep" in (recipe.parent / "run" / "stacks" / "rank-1.txt").read_text()
