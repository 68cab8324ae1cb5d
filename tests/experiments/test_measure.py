"""What is around a result: what it rests on, runs that diverged, and going on where a command was stopped."""

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from experiments import entry, provenance
from experiments.catalogue import NAMES
from experiments.experiment import Experiment
from experiments.lab import Lab
from experiments.pool import Pool
from experiments.record import failed
from experiments.result import Result, Table
from experiments.runs import corpus_hash
from experiments.variants import MOEPP, VANILLA
from moepp.errors import DataError

from .toy import Guesses, toy_scale


def _lab(folder: Path, *diverged: tuple[str, int]) -> Lab:
    """MoE++ and vanilla with numbers that nobody trained."""
    lab = Lab(toy_scale(folder / "scale"), Pool(folder / "pool", console=Console(file=StringIO())), questions=Guesses())
    for variant in (MOEPP, VANILLA):
        for seed in lab.scale.seeds:
            run = lab.run(variant, seed)
            lost = failed(run, run.key(), corpus_hash(run.scale), "step 3: the loss is nan")
            whole = replace(lost, failure=None, loss=3.0 + seed)
            (lost if (variant.name, seed) in diverged else whole).write(lab.pool.path(run))
    return lab


def _experiment(measure: Callable[[Lab], None] = lambda lab: None) -> Experiment:
    def result(lab: Lab) -> Result:
        measure(lab)
        rows = [[variant.name, f"{lab.mean_loss(variant):.1f}"] for variant in (MOEPP, VANILLA)]
        return Result(tables=[Table("Losses", ["", "loss"], rows)], claims=[], limits=["Small."])

    return Experiment(name="table3", title="Table 3: a test", variants=[MOEPP, VANILLA], result=result)


def test_a_seed_that_diverged_is_said_to_be_missing(tmp_path: Path) -> None:
    result = _experiment().measure(_lab(tmp_path, ("MoE++", 1)))
    assert result.limits == [
        "MoE++: 1 of 2 seeds; training diverged with seed 1 (step 3: the loss is nan).",
        "Small.",
    ]
    assert len(result.keys) == 3
    assert result.tables[0].rows == [["MoE++", "3.0"], ["vanilla", "3.5"]]


def test_a_model_that_diverged_with_all_seeds_is_a_result(tmp_path: Path) -> None:
    result = _experiment().measure(_lab(tmp_path, ("vanilla", 0), ("vanilla", 1)))
    assert result.limits[0].startswith("vanilla: 0 of 2 seeds; training diverged with seed 0, 1 (")
    assert result.tables == []


def test_a_result_says_what_it_rests_on(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    result = _experiment().measure(lab)
    (trained,) = result.trained  # four runs, one machine
    assert trained == {name: result.facts[name] for name in ("machine", "versions")}
    assert (result.device, list(result.seeds)) == ("cpu", [0, 1])
    assert result.fingerprint == _experiment().fingerprint(lab)
    assert result.fingerprint != _experiment().fingerprint(replace(lab, checkpoints=(tmp_path,)))


def test_an_experiment_depends_on_its_own_file_and_on_what_all_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in provenance.HERE.glob("*.py"):
        shutil.copy(path, tmp_path)
    names = "|".join(NAMES)
    imports = re.compile(rf"^\s*from \.({names}) import|^\s*from \. import .*\b({names})\b", re.MULTILINE)
    assert not [path.name for path in tmp_path.iterdir() if imports.search(path.read_text(encoding="utf-8"))]
    monkeypatch.setattr(provenance, "HERE", tmp_path)
    code_hash = provenance.code_hash.__wrapped__
    before = code_hash("table3")
    for edited in ("table5.py", "show.py", "table3.py", "lab.py"):
        with (tmp_path / edited).open("a") as file:
            file.write("# edited\n")
        after = code_hash("table3")
        assert (after != before) == (edited in ("table3.py", "lab.py")), edited
        before = after


def test_further_seeds_are_of_the_experiments_that_ask_for_them(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    one = replace(lab, scale=replace(lab.scale, seeds=(0,), more_seeds=(1,)))
    plain, more = _experiment(), replace(_experiment(), more_seeds=True)
    assert list(plain.measure(one).seeds) == [0]
    assert list(more.measure(one).seeds) == [0, 1]
    assert more.measure(one).tables[0].rows == [["MoE++", "3.5"], ["vanilla", "3.5"]]
    assert plain.runs(one.scale) == more.runs(one.scale)[::2]  # else they would be trained twice
    assert one.run(MOEPP, 1) == replace(one, scale=one.scale.with_more_seeds()).run(MOEPP, 1)


@pytest.fixture
def commanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs ``python -m experiments`` on two experiments, and returns its exit code."""
    lab = _lab(tmp_path)
    monkeypatch.setattr(entry, "scale_of", lambda name: lab.scale)

    def run(first: Experiment, second: Experiment, *options: str) -> int:
        monkeypatch.setattr(entry, "experiment", {"first": first, "second": second}.get)
        with pytest.raises(SystemExit) as stopped:
            entry.run(["first", "second", "--pool", str(lab.pool.folder), "--out", str(tmp_path / "out"), *options])
        return int(stopped.value.code or 0)

    return run


def test_what_is_unchanged_is_not_measured_again(commanded: Callable[..., int]) -> None:
    measured: list[Lab] = []
    first, second = _experiment(measured.append), replace(_experiment(measured.append), name="table5")
    assert [commanded(first, second), len(measured)] == [0, 2]
    assert [commanded(first, second), len(measured)] == [0, 2]
    assert [commanded(first, second, "--again"), len(measured)] == [0, 4]


def test_an_experiment_that_cannot_be_measured_does_not_keep_others_from_it(
    commanded: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(lab: Lab) -> None:
        raise DataError("the text is too short")

    assert commanded(_experiment(fails), replace(_experiment(), name="table5")) == 2
    assert "error: table3: the text is too short" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["table5.json"]


def test_measuring_stops_at_the_deadline(
    commanded: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_long(lab: Lab) -> None:
        lab.pool.deadline = 0.0

    assert commanded(_experiment(takes_long), replace(_experiment(), name="table5")) == entry.UNFINISHED
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["table3.json"]


def test_a_signal_is_passed_on_to_children_that_are_waited_for() -> None:
    import os
    import signal

    saves = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print(flush=True); time.sleep(60)"
    children = [subprocess.Popen([sys.executable, "-c", saves], stdout=subprocess.PIPE) for _ in range(2)]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert entry.wait(children) == {7}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
