"""``training.report_to``: what a tracker is told, by whom, in which of its runs, and what it may not break."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest

from moepp.errors import ConfigError
from moepp.train import load_recipe, train

from ..distributed.processes import run_processes
from ..distributed.runs import parallel_recipe
from .tiny import Crash, Runner, at_step, crash, logged, quiet, write_recipe
from .trackers import NAMES, install

SIX = ("training.max_steps=6", "training.eval_steps=6")


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_gets_the_recipe_the_model_and_every_logged_number(
    name: str, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, before = install(name, monkeypatch), dict(os.environ)
    runner.train("run", f"training.report_to={name}", "training.project=mine", *SIX)
    run, folder = tracker.run, runner.out("run")
    assert {"trackio": run.name.rpartition("-")[0]}.get(name, run.name) == "run"
    assert (run.project, run.begun, run.ended) == ("mine", 1, [True])
    assert float(run.params["recipe.optimization.learning_rate"]) == 5e-3
    assert "prose.jsonl" in str(run.params["recipe.data.sources"])
    assert (run.params["num_ffn_experts"], run.params["max_steps"]) == (3, 6)
    found = {entry["step"]: entry["lm_loss"] for entry in run.logged if "lm_loss" in entry}
    assert found == {entry["step"]: entry["lm_loss"] for entry in logged(folder)}
    assert set(found) == {1, 2, 3, 4, 5, 6}
    assert not (folder / "tensorboard").exists()
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_goes_on_in_the_trackers_own(name: str, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = install(name, monkeypatch)
    with at_step(6, crash), pytest.raises(Crash):
        runner.train("run", f"training.report_to={name}")
    assert tracker.run.ended == ([True] if name == "trackio" else [False])
    runner.train("run", f"training.report_to={name}", "training.max_steps=8", resume=True)
    assert tracker.run.begun == 2
    assert tracker.run.ended[1:] == [True]
    assert [entry["step"] for entry in tracker.run.logged if "lm_loss" in entry] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    steps = tracker.run.params["recipe.training.max_steps"]
    assert steps == ("12" if name == "mlflow" else 8), "MLflow refuses to change what was said"


def test_two_runs_of_one_process_are_two_of_the_trackers_and_share_no_name(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackers = [install(name, monkeypatch) for name in NAMES]
    for number in (1, 2):
        runner.out(str(number)).mkdir()
        runner.train(f"{number}/run", f"training.report_to=[{','.join(NAMES)}]", *SIX)
    assert [len(tracker.runs) for tracker in trackers] == [2, 2, 2]
    known = json.loads((runner.out("2/run") / "trackers.json").read_text())
    assert known == {tracker.name: list(tracker.runs)[1] for tracker in trackers}


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_while_training_is_left_out_and_the_run_ends_well(
    name: str, runner: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = install(name, monkeypatch)
    with at_step(3, lambda _: setattr(tracker, "broken", True)):
        runner.train("run", f"training.report_to=[tensorboard,{name}]", *SIX)
    assert [entry["step"] for entry in tracker.run.logged] == [1, 2]
    assert len(logged(runner.out("run"))) == 6
    assert (runner.out("run") / "model.safetensors").is_file()
    assert (runner.out("run") / "tensorboard").is_dir()
    said = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert said[0] == f"{name} failed ({name} is not reached): it gets nothing more of this run, which goes on"


def test_a_tracker_that_cannot_begin_is_refused_by_a_new_run_and_left_out_by_a_resumed_one(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = install("wandb", monkeypatch)
    tracker.broken = True
    with pytest.raises(ConfigError, match=r"^training\.report_to='wandb' cannot begin: wandb is not reached; see to"):
        runner.train("run", "training.report_to=wandb")
    tracker.broken = False
    with at_step(6, crash), pytest.raises(Crash):
        runner.train("other", "training.report_to=wandb")
    tracker.broken = True
    with caplog.at_level(logging.WARNING):
        runner.train("other", "training.report_to=wandb", "training.max_steps=6", resume=True)
    assert "wandb failed (wandb is not reached)" in caplog.text
    assert len(logged(runner.out("other"))) == 6


def test_a_tracker_that_is_not_there_is_named_before_anything_is_read(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = r"^training\.report_to='trackio' is not installed; pip install trackio, or leave it out$"
    with pytest.raises(ConfigError, match=message):
        runner.train("run", "training.report_to=[trackio]", "data.sources[0].files=[missing]", fresh=True)
    assert not runner.out("run").exists()


def test_none_reports_nowhere_and_the_log_file_stays(runner: Runner) -> None:
    runner.train("run", "training.report_to=none", *SIX)
    assert not (runner.out("run") / "tensorboard").exists()
    assert len(logged(runner.out("run"))) == 6


def _reported(recipe: str) -> list[int]:
    with pytest.MonkeyPatch.context() as patch:
        tracker = install("trackio", patch)
        train(load_recipe(recipe), console=quiet())
        return [len(run.logged) for run in tracker.runs.values()]


def test_only_the_first_process_reports(texts: str, tmp_path: Path) -> None:
    recipe = parallel_recipe(texts, tmp_path / "run")
    recipe["training"] |= {"report_to": "trackio", "max_steps": 2, "eval_steps": 2}
    first, second = run_processes(2, _reported, str(write_recipe(tmp_path / "recipe.yaml", recipe)))
    assert first[0] >= 2
    assert second == []


@pytest.mark.parametrize("content", ['{"wandb": "r', "[1]", "\\xff"], ids=["cut short", "no names", "no JSON"])
def test_a_damaged_record_of_the_trackers_runs_costs_no_run(
    content: str, runner: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = install("wandb", monkeypatch)
    with at_step(6, crash), pytest.raises(Crash):
        runner.train("run", "training.report_to=wandb")
    file = runner.out("run") / "trackers.json"
    file.write_text(content)
    runner.train("run", "training.report_to=wandb", "training.max_steps=8", resume=True)
    assert "trackers.json is damaged (" in caplog.text
    assert "wandb begins a new run" in caplog.text
    assert json.loads(file.read_text()) == {"wandb": list(tracker.runs)[1]}
    assert len(tracker.runs) == 2
