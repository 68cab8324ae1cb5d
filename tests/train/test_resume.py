"""An interrupted run, resumed, is the uninterrupted one: equal losses at every step, equal weights, bit for bit."""

import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moepp.data import StreamingData
from moepp.train import train

from .tiny import Crash, Runner, assert_same_run, at_step, crash, logged, quiet

ACCUMULATE = ("training.gradient_accumulation_steps=2", "training.per_device_train_batch_size=2")


def terminate(_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def accumulated(shared: Runner) -> Path:
    shared.train("accumulated", *ACCUMULATE)
    return shared.out("accumulated")


@pytest.mark.parametrize("overrides", [(), ACCUMULATE], ids=["plain", "accumulation"])
def test_after_a_crash_between_two_saves(runner: Runner, overrides: tuple, request: pytest.FixtureRequest) -> None:
    reference = request.getfixturevalue("accumulated" if overrides else "plain")
    with at_step(6, crash), pytest.raises(Crash):
        runner.train("run", *overrides)
    assert logged(runner.out("run"))[-1]["step"] == 5
    result = runner.train("run", *overrides, fresh=True, resume=True)
    assert result.signal is None
    assert_same_run(runner.out("run"), reference)


@pytest.mark.parametrize("overrides", [(), ACCUMULATE], ids=["plain", "accumulation"])
def test_after_a_signal_that_saved(runner: Runner, overrides: tuple, request: pytest.FixtureRequest) -> None:
    reference = request.getfixturevalue("accumulated" if overrides else "plain")
    with at_step(6, terminate):
        result = runner.train("run", *overrides)
    assert result.signal == signal.SIGTERM
    assert result.metrics == {}
    run = runner.out("run")
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    assert not (run / "model.safetensors").exists()
    runner.train("run", *overrides, fresh=True, resume=True)
    assert_same_run(run, reference)


def test_after_a_condition_that_stopped_it(runner: Runner, plain: Path) -> None:
    asked = iter([False] * 5 + [True])
    recipe = runner.recipe("run")
    result = train(recipe, prepared=runner.prepared(recipe), console=quiet(), stop=lambda: next(asked))
    assert result.signal == signal.SIGTERM
    assert (runner.out("run") / "checkpoint-6").is_dir()
    runner.train("run", resume=True)
    assert_same_run(runner.out("run"), plain)


def test_after_several_crashes_and_a_signal(runner: Runner, plain: Path) -> None:
    for step, event in ((5, crash), (7, terminate), (8, crash), (11, crash)):
        resume = runner.out("run").exists()
        with at_step(step, event):
            try:
                runner.train("run", resume=resume, fresh=True)
            except Crash:
                assert event is crash
    runner.train("run", resume=True, fresh=True)
    assert_same_run(runner.out("run"), plain)


def test_validation_is_repeated_too(runner: Runner, plain: Path) -> None:
    with at_step(10, crash), pytest.raises(Crash):
        runner.train("run")
    result = runner.train("run", resume=True)
    assert logged(runner.out("run"), "eval_loss") == logged(plain, "eval_loss")
    last = logged(plain, "eval_loss")[-1]
    assert result.metrics == {key: value for key, value in last.items() if key.startswith("eval_")}


def test_from_an_earlier_checkpoint(runner: Runner, plain: Path) -> None:
    with at_step(10, crash), pytest.raises(Crash):
        runner.train("run")
    runner.train("run", resume=runner.out("run") / "checkpoint-4")
    assert_same_run(runner.out("run"), plain)


def test_from_an_earlier_checkpoint_and_interrupted_again(runner: Runner, plain: Path) -> None:
    """--resume goes on with the new future, not with the checkpoints of the one that was left."""
    with at_step(10, crash), pytest.raises(Crash):
        runner.train("run")
    with at_step(6, terminate):
        runner.train("run", resume=runner.out("run") / "checkpoint-4")
    names = {path.name for path in runner.out("run").glob("*checkpoint-*")}
    assert names == {"checkpoint-4", "checkpoint-6", "superseded-checkpoint-8"}
    runner.train("run", resume=True)
    assert_same_run(runner.out("run"), plain)


def test_a_finished_run_resumed_stays_as_it_is(runner: Runner, plain: Path) -> None:
    shutil.copytree(plain, runner.out("run"))
    result = runner.train("run", resume=True, fresh=True)
    assert_same_run(runner.out("run"), plain)
    assert result.metrics["eval_loss"] == logged(plain, "eval_loss")[-1]["eval_loss"]


def test_a_kill_in_a_save_of_the_final_model_leaves_a_run_to_resume(
    runner: Runner, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(source: Path, target: Path) -> Path:
        raise Crash

    with monkeypatch.context() as patch, at_step(12, lambda _: patch.setattr(Path, "replace", killed), "on_train_end"):
        with pytest.raises(Crash):
            runner.train("run")
        assert not (runner.out("run") / "model.safetensors").exists()
    runner.train("run", resume=True, fresh=True)
    assert_same_run(runner.out("run"), plain)


def test_every_state_is_restored(runner: Runner) -> None:
    """Directly, in case that some model makes no use of one of them."""

    def state(seen: dict[str, Any]) -> dict[str, Any]:
        optimizer = seen["optimizer"].optimizer
        moments = [value.clone() for p in optimizer.state.values() for value in p.values()]
        return {
            "moments": moments,
            "schedule": (seen["lr_scheduler"].last_epoch, seen["lr_scheduler"].get_last_lr()),
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1].tolist(),  # pyright: ignore[reportArgumentType]
            "python": random.getstate(),
        }

    seen: list[dict[str, Any]] = []
    with at_step(5, lambda kwargs: seen.append(state(kwargs))), at_step(6, crash):
        for resume in (False, True):
            with pytest.raises(Crash):
                runner.train("run", resume=resume)
            random.random()
            np.random.rand()
            torch.rand(1)
    before, after = seen
    assert all(torch.equal(a, b) for a, b in zip(before.pop("moments"), after.pop("moments"), strict=True))
    assert torch.equal(before.pop("torch"), after.pop("torch"))
    assert before == after


def test_a_stream_goes_on_where_it_was(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without reading it from its beginning: what is read is less than the samples before the checkpoint hold."""
    source = f"{{name: prose, dataset: json, data_files: ['{runner.texts}/prose.jsonl'], streaming: true}}"
    overrides = (f"data.sources=[{source}]", "data.max_validation_tokens=64")
    runner.train("reference", *overrides, fresh=True)
    with at_step(10, crash), pytest.raises(Crash):
        runner.train("run", *overrides, fresh=True)
    assert (runner.out("run") / "checkpoint-8" / "stream.json").is_file()
    yielded = []
    original = StreamingData.micro_batches

    def counted(self: StreamingData, *args: Any, **kwargs: Any) -> Iterator[dict[str, torch.Tensor]]:
        for batch in original(self, *args, **kwargs):
            yielded.extend(batch["input_ids"])
            yield batch

    monkeypatch.setattr(StreamingData, "micro_batches", counted)
    runner.train("run", *overrides, fresh=True, resume=True)
    assert len(yielded) == 4 * 4
    assert_same_run(runner.out("run"), runner.out("reference"))


def test_the_optimizer_follows_the_recipe_after_a_resume_not_the_checkpoint(runner: Runner) -> None:
    """A run that diverged is told to lower its learning rate and to resume: that must have an effect."""
    with at_step(6, crash), pytest.raises(Crash):
        runner.train("run")
    changed = ("optimization.learning_rate=1e-3", "optimization.weight_decay=0.3", "optimization.beta2=0.99")
    seen: list[Any] = []
    with at_step(5, lambda kwargs: seen.extend(kwargs["optimizer"].param_groups)):
        runner.train("run", *changed, resume=True)
    assert [group["weight_decay"] for group in seen] == [0.3, 0.0]
    assert [group["betas"] for group in seen] == [(0.9, 0.99)] * 2
    rates = {entry["step"]: entry["learning_rate"] for entry in logged(runner.out("run"))}
    assert rates[4] > 3e-3
    assert rates[5] == pytest.approx(1e-3)
    assert rates[12] == pytest.approx(5e-4)
