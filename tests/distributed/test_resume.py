"""``moepp train --resume`` on another number of processes ends like a run that was never stopped."""

import shutil
from pathlib import Path

import pytest

from moepp.train import checkpoint

from ..train.tiny import write_texts
from .runs import train_on
from .test_parity import LAYOUTS, assert_same

SAVES = ("training.save_strategy=steps", "training.save_steps=1", "training.max_steps=3")


def test_a_run_resumed_on_another_number_of_processes_ends_the_same(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts")
    world, *layout = LAYOUTS["experts over 2 of 4"]
    expected = train_on(1, texts, tmp_path / "alone", *SAVES)
    saved = tmp_path / "saved"
    train_on(world, texts, saved, *SAVES, *layout)
    assert [path.name for path in checkpoint.checkpoints(saved)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    for path in (saved / "checkpoint-2", saved / "checkpoint-3", saved / "model.safetensors"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("two", "one"):
        run = shutil.copytree(saved, tmp_path / name)
        resumed = train_on(2 if name == "two" else 1, texts, run, *SAVES, resume=True)
        resumed["gradients"] = expected["gradients"]  # of the first step, which was before
        assert_same(resumed, expected)
        assert resumed["validation"]["eval_loss"] == pytest.approx(expected["validation"]["eval_loss"], abs=1e-5)
