"""``moepp train --resume`` on another number of processes ends like a run that was never stopped."""

import shutil
from pathlib import Path

import pytest

from moepp.train import checkpoint

from ..train.tiny import write_texts
from .runs import train_on
from .test_parity import LAYOUTS, assert_same

SAVES = ("training.save_strategy=steps", "training.save_steps=1", "training.max_steps=3")


def streamed(texts: str) -> str:
    """One of the two sources is read while training; the other one was read before."""
    prose = f"{{name: prose, weight: 3, dataset: json, data_files: ['{texts}/prose.jsonl'], streaming: true}}"
    return f"data.sources=[{prose}, {{name: code, weight: 1, files: ['{texts}/code.jsonl']}}]"


def back_to(step: int, run: Path) -> Path:
    """Takes from a run what it did after a checkpoint."""
    for path in checkpoint.checkpoints(run):
        if checkpoint.step_of(path) > step:
            shutil.rmtree(path)
    (run / "model.safetensors").unlink()
    return run


def test_a_run_resumed_on_another_number_of_processes_ends_the_same(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts")
    overrides = (*SAVES, streamed(texts), "data.stream_lanes=4", "data.max_validation_tokens=64")
    overrides += ("model.num_shared_experts=1",)  # which is one part, whatever the number of processes
    world, *layout = LAYOUTS["experts over 2 of 4"]
    expected = train_on(1, texts, tmp_path / "alone", *overrides)
    saved = tmp_path / "saved"
    train_on(world, texts, saved, *overrides, *layout)
    assert [path.name for path in checkpoint.checkpoints(saved)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert (back_to(1, saved) / "checkpoint-1" / checkpoint.STREAM_FILE).is_file()
    for to, step in ((2, 1), (4, 2), (1, 1)):  # processes and checkpoint: 4 -> 2 -> 4, and 4 -> 1
        run = back_to(2, tmp_path / "2") if step == 2 else shutil.copytree(saved, tmp_path / str(to))
        resumed = train_on(to, texts, run, *overrides, *(layout if to == 4 else ()), resume=True)
        resumed["gradients"] = expected["gradients"]  # of the first step, which was before
        assert_same(resumed, expected)
        assert resumed["validation"]["eval_loss"] == pytest.approx(expected["validation"]["eval_loss"], abs=1e-5)
