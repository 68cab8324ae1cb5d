"""A full disk and numbers that are not finite: one line, the earlier checkpoints whole, nothing half-written."""

import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from moepp import cli
from moepp.errors import DataError
from moepp.train import checkpoint
from moepp.train.diverged import TrainingDiverged

from .tiny import Runner, assert_same_run, at_step, logged, recipe_of, weights, write_recipe


def assert_whole(run: Path, *steps: int) -> None:
    """These checkpoints and no other are there, whole and finite, and nothing is half-written beside them."""
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(run)] == list(steps)
    for path in checkpoint.checkpoints(run):
        checkpoint.verify(path)
        assert all(tensor.isfinite().all() for tensor in weights(path).values())
    assert not checkpoint.staging(run).exists()


@contextmanager
def files_of_at_most(size: int, step: int, event: str, after: Path | None = None) -> Iterator[None]:
    """From that event of that step on, the kernel refuses to write any file beyond this size.

    Args:
        after: a checkpoint to wait for: they are written in the background.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(_: object) -> None:
        while after is not None and not after.exists():
            time.sleep(0.001)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    with at_step(step, limit, event):
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100_000, 800_000])
def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one(runner: Runner, plain: Path, size: int) -> None:
    """Neither the shard's beginning nor its end may be missing."""
    assert (plain / "checkpoint-8" / "__0_0.distcp").stat().st_size > size
    remedy = r"make room, or check output_dir; --resume goes on from \S+checkpoint-4"
    message = rf"^checkpoint-8 could not be written to \S+: .*File too large; {remedy}$"
    with files_of_at_most(size, 8, "on_log"), pytest.raises(DataError, match=message) as error:
        runner.train("run")
    assert "\n" not in str(error.value)
    run = runner.out("run")
    assert_whole(run, 4)
    runner.train("run", resume=True)
    assert_same_run(run, plain)


def test_a_final_model_that_cannot_be_written_is_not_there_in_part(runner: Runner, plain: Path) -> None:
    message = r"^the trained model could not be written to \S+: .*checkpoint-12$"
    with files_of_at_most(100_000, 12, "on_train_end"), pytest.raises(DataError, match=message):
        runner.train("run")
    run = runner.out("run")
    assert_whole(run, 4, 8, 12)
    assert not (run / "model.safetensors").exists()
    runner.train("run", resume=True)
    assert_same_run(run, plain)


def test_a_tokenizer_that_cannot_be_written_ends_the_run_before_it_begins(runner: Runner, plain: Path) -> None:
    """tokenizers raises a bare Exception."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert (plain / "tokenizer.json").stat().st_size > 4000
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(DataError, match=r"^recipe\.yaml, .* could not be written to "):
            runner.train("run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(runner.out("run").iterdir()) == []


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_logs_that_cannot_be_written_end_the_run_with_one_line(runner: Runner, plain: Path) -> None:
    """metrics.jsonl or TensorBoard's file, whichever reaches the limit first; the latter is written by a thread."""
    message = r"^(metrics\.jsonl could not be written|training stopped: ).*; --resume goes on from \S+checkpoint-4$"
    run = runner.out("run")
    with files_of_at_most(6000, 5, "on_step_end", after=run / "checkpoint-4"), pytest.raises(DataError, match=message):
        runner.train("run")
    assert_whole(run, 4)
    runner.train("run", resume=True)
    assert_same_run(run, plain)


def test_a_folder_that_cannot_be_made_is_named(runner: Runner) -> None:
    (runner.folder / "file").write_text("")
    with pytest.raises(DataError, match=r"could not be written to \S+file/run: .*Not a directory"):
        runner.train("run", f"output_dir={runner.folder}/file/run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB, where the system lets us mount one: room for one checkpoint and not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.decode().strip()}")
    yield folder
    # Lazily: the writer of TensorBoard's file of a run that failed closes it when it is collected.
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_one_line_and_exit_code_2(
    small_disk: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_disk / "run"
    path = write_recipe(tmp_path / "recipe.yaml", recipe_of(texts, run))
    monkeypatch.setattr("sys.argv", ["moepp", "train", str(path)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(
        r"error: checkpoint-8 could not be written to \S+: .*No space left.*; --resume goes on from \S+checkpoint-4$",
        line,
    )
    assert_whole(run, 4)


def poison(parameter: str, value: float) -> Callable[[dict[str, Any]], None]:
    def action(seen: dict[str, Any]) -> None:
        with torch.no_grad():
            seen["model"].get_parameter(parameter)[..., 0, 0] = value  # of every expert: some may have no tokens

    return action


def expect_divergence(runner: Runner, step: int, where: str, last: str) -> None:
    remedy = "lower optimization.learning_rate or max_grad_norm, or look at the data of this step"
    message = rf"^training diverged at step {step}: what is not finite begins in {where}; {last}; {remedy}$"
    with pytest.raises(TrainingDiverged, match=message):
        runner.train("run")


EXPERTS = "model.layers.1.mlp.experts"
GOES_ON = r"--resume goes on from \S+checkpoint-4"


def test_nan_in_an_experts_weights_stops_the_run_and_names_step_and_layer(runner: Runner) -> None:
    with at_step(6, poison(f"{EXPERTS}.down_proj", float("nan"))):
        expect_divergence(runner, 7, f"the weights of {EXPERTS}.down_proj", GOES_ON)
    assert_whole(runner.out("run"), 4)
    assert [entry["step"] for entry in logged(runner.out("run"))] == list(range(1, 7))


def test_an_update_that_overflows_is_found_before_it_is_saved(runner: Runner) -> None:
    """Step 8 ends with a save: without a look at the weights its checkpoint would be called the last good one."""
    with at_step(8, poison(f"{EXPERTS}.gate_up_proj", float("inf"))):
        expect_divergence(runner, 8, f"the weights of {EXPERTS}.gate_up_proj", GOES_ON)
    assert_whole(runner.out("run"), 4)


def test_an_update_that_overflows_is_found_before_the_model_is_saved_too(runner: Runner) -> None:
    with at_step(3, poison(f"{EXPERTS}.gate_up_proj", float("inf"))), pytest.raises(TrainingDiverged, match="step 3"):
        runner.train("run", "training.max_steps=3", "training.save_strategy=no")
    assert not (runner.out("run") / "model.safetensors").exists()


def test_an_activation_that_overflows_is_traced_to_its_layer(runner: Runner) -> None:
    """Weights of 1e30 are finite, but their product of SwiGLU is not."""

    def blow_up(seen: dict[str, Any]) -> None:
        with torch.no_grad():
            seen["model"].get_parameter(f"{EXPERTS}.gate_up_proj").mul_(1e30)

    with at_step(6, blow_up):
        expect_divergence(runner, 7, f"the output of {EXPERTS}", GOES_ON)
    assert_whole(runner.out("run"), 4)


def test_a_gradient_that_overflows_under_a_finite_loss_stops_before_the_optimizer(runner: Runner) -> None:
    before: dict[str, torch.Tensor] = {}
    models: list[Any] = []

    def overflow(seen: dict[str, Any]) -> None:
        models.append(seen["model"])
        before.update({name: p.detach().clone() for name, p in seen["model"].named_parameters()})
        seen["model"].get_parameter(f"{EXPERTS}.down_proj").register_hook(lambda gradient: gradient * float("inf"))

    with at_step(6, overflow):
        expect_divergence(runner, 7, f"the gradient of {EXPERTS}.down_proj", GOES_ON)
    assert all(torch.equal(p, before[name]) for name, p in models[0].named_parameters())
    assert_whole(runner.out("run"), 4)


def test_a_loss_that_is_infinite_with_finite_gradients_stops_the_run(runner: Runner) -> None:
    def add_infinity(module: object, args: tuple, output: Any) -> Any:
        output["loss"] = output["loss"] + float("inf")
        return output

    with at_step(6, lambda seen: seen["model"].register_forward_hook(add_infinity)):
        expect_divergence(runner, 7, "the loss", GOES_ON)


def test_before_the_first_checkpoint_it_says_that_there_is_none(runner: Runner) -> None:
    with at_step(1, poison(f"{EXPERTS}.down_proj", float("nan"))):
        expect_divergence(runner, 2, f"the weights of {EXPERTS}.down_proj", "no checkpoint had been written")


def test_the_micro_batch_that_went_wrong_is_found_among_those_of_its_step(runner: Runner) -> None:
    def break_the_second(seen: dict[str, Any]) -> None:
        batches: list[torch.Tensor] = []

        def forward(module: object, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            batches.append(args[0])
            bad = len(batches) > 1 and torch.equal(args[0], batches[1])
            return output * float("nan") if bad else output

        seen["model"].model.embed_tokens.register_forward_hook(forward)

    accumulate = ("training.gradient_accumulation_steps=2", "training.per_device_train_batch_size=2")
    with at_step(4, break_the_second), pytest.raises(TrainingDiverged, match=r"step 5: .*output of model\.embed_tok"):
        runner.train("run", *accumulate)
