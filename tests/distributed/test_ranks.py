"""What ranks agree on: one of them fails, is missing or runs something else, and all of them stop with one message."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from moepp.errors import ConfigError, MoEPPError
from moepp.train import ranks
from moepp.train.process_group import Launch, process_group

from .processes import run_processes

Said = tuple[str, int | None]


def error_of(function: Callable[[], Any]) -> Said:
    """The message that a rank ends with, and who prints it."""
    try:
        function()
    except MoEPPError as error:
        return str(error), error.said_by
    return "", None


def _agree(texts: dict[int, str], kind: type[Exception] = ConfigError) -> Said:
    def setup() -> int:
        if dist.get_rank() in texts:
            raise kind(texts[dist.get_rank()])
        return dist.get_rank()

    return error_of(lambda: ranks.agreed("tried", setup))


def test_without_a_job_nothing_is_asked() -> None:
    assert ranks.agreed("tried", lambda: 3) == 3
    assert (ranks.rank(), ranks.world_size()) == (0, 1)
    ranks.same_everywhere({"a": 1}, "")
    ranks.same_code_everywhere()


def _values_and_sizes() -> tuple[int, int, int]:
    return ranks.agreed("tried", lambda: 10 * ranks.rank()), ranks.rank(), ranks.world_size()


def test_each_rank_gets_its_own_value() -> None:
    assert run_processes(2, _values_and_sizes) == [(0, 0, 2), (10, 1, 2)]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({0: "no", 1: "no", 2: "no"}, "no"),
        ({1: "no"}, "rank 1: no"),
        ({0: "no", 2: "no"}, "ranks 0, 2: no"),
        ({1: "first", 2: "second"}, "rank 1: first"),
    ],
)
def test_a_failure_of_one_rank_is_the_failure_of_all(texts: dict[int, str], said: str) -> None:
    assert run_processes(3, _agree, texts) == [(said, 0)] * 3


def test_files_that_cannot_be_read_count_as_failures() -> None:
    assert run_processes(2, _agree, {0: "gone", 1: "gone"}, OSError) == [("gone", 0)] * 2
    assert run_processes(2, _agree, {1: ""}, OSError) == [("rank 1: OSError", 0)] * 2


def _same(fields: list[dict[str, Any]]) -> Said:
    return error_of(lambda: ranks.same_everywhere(ranks.flattened(fields[dist.get_rank()]), "use one recipe"))


def test_the_first_field_that_differs_is_named() -> None:
    recipe = {"seed": 0, "optimization": {"learning_rate": 5e-4, "beta1": 0.9}, "model": {}, "sources": [{"a": 1}]}
    other = recipe | {"optimization": {"learning_rate": 1e-3, "beta1": 0.8}}
    assert run_processes(2, _same, [recipe, recipe]) == [("", None)] * 2
    said = "rank 1 has optimization.learning_rate=0.001 and rank 0 0.0005; use one recipe"
    assert run_processes(2, _same, [recipe, other]) == [(said, 0)] * 2
    said = "rank 1 has license='mit' and rank 0 None; use one recipe"
    assert run_processes(2, _same, [recipe, recipe | {"license": "mit"}]) == [(said, 0)] * 2


def test_the_digest_changes_with_any_source_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "moepp"
    (package / "train").mkdir(parents=True)
    (package / "train" / "ranks.py").write_text("")
    (package / "config.py").write_text("one")
    monkeypatch.setattr(ranks, "__file__", str(package / "train" / "ranks.py"))
    digests = {ranks.code_versions()["moepp's source files (digest)"]}
    (package / "config.py").write_text("two")
    digests.add(ranks.code_versions()["moepp's source files (digest)"])
    (package / "config.py").rename(package / "other.py")
    digests.add(ranks.code_versions()["moepp's source files (digest)"])
    assert len(digests) == 3


def _start(port: int, differs: str | None = None, absent: int | None = None, timeout: float = 20.0) -> Said:
    """Starts the job's process group as ``moepp train`` does."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    launch = Launch.of(os.environ)
    assert launch is not None
    if launch.rank == absent:
        return "", None
    if launch.rank == 1 and differs == "gloo":
        dist.is_gloo_available = lambda: False
    elif launch.rank == 1 and differs is not None:
        versions = ranks.code_versions() | {differs: "other"}
        ranks.code_versions = lambda: versions

    def start() -> None:
        with process_group(launch, timeout, "cpu"):
            assert ranks.agreed("tried", lambda: (dist.get_rank(), dist.get_world_size())) == (launch.rank, 2)
            job = ranks.job()
            assert job is not None
            assert job.timeout.total_seconds() == timeout
        assert not dist.is_initialized()

    return error_of(start)


def test_the_ranks_of_a_launch_form_a_group(port: int) -> None:
    assert run_processes(2, _start, port, init=False) == [("", None)] * 2


def test_a_missing_rank_is_named_and_nobody_waits_for_it(port: int) -> None:
    """Rank 0 keeps the store here: the others read its message before it leaves."""
    first, other, absent = run_processes(3, _start, port, None, 2, 1.0, init=False)
    assert first == other
    assert absent == ("", None)
    message, said_by = first
    assert message == (
        "only 2 of 3 processes arrived within 1 s: rank 2 did not; see what they do and that all were started, "
        "or raise distributed.timeout_seconds if they need longer"
    )
    assert said_by in (0, 1)


def test_a_rank_with_other_code_is_named(port: int) -> None:
    for name in ("moepp's source files (digest)", "torch"):
        first, second = run_processes(2, _start, port, name, init=False)
        assert first == second
        assert first[0].startswith(f"rank 1 has {name}='other' and rank 0 '")
        assert first[1] == 0


def test_a_rank_without_gloo_is_named(port: int) -> None:
    first, second = run_processes(2, _start, port, "gloo", init=False)
    assert first == second
    assert first[0].startswith("rank 1: this PyTorch")
    assert "built without gloo" in first[0]


def _slow() -> tuple[Said, float]:
    job = ranks.job()
    assert job is not None
    job.store.set_timeout(job.timeout / 60)  # of the 60 s of the tests' processes
    began = time.monotonic()
    return error_of(lambda: ranks.agreed("slept", lambda: time.sleep(3.0 * ranks.rank()))), time.monotonic() - began


def test_a_rank_that_does_not_finish_is_named() -> None:
    """Also to itself, when it comes at last."""
    (first, waited), (second, _) = run_processes(2, _slow)
    assert first == second
    assert first[0].startswith("only 1 of 2 processes slept within 1 s: rank 1 did not;")
    assert first[1] == 0
    assert waited < 3.0
