"""Runs of a model of a few thousand parameters on a few kilobytes of text: tenths of a second each."""

import json
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from moepp.train import TrainResult, checkpoint, dcp, load_recipe, train
from moepp.train.callbacks import METRICS_FILE, Interrupts
from moepp.train.prepared import Prepared, prepare

WORDS = ["route", "token", "expert", "copy", "zero", "constant", "logit", "layer", "weight", "share", "load", "gate"]


def quiet() -> Console:
    """A console that shows nothing."""
    return Console(file=StringIO())


def write_texts(folder: Path) -> str:
    """Two sources of text, the same in every run; returns the folder as a string."""
    folder.mkdir(parents=True)
    generator = random.Random(0)
    for name, count in (("prose", 60), ("code", 40)):
        lines = []
        for _ in range(count):
            words = generator.choices(WORDS, k=60)
            text = " ".join(words) if name == "prose" else "\n".join(f"{w} = {w}({len(w)})" for w in words)
            lines.append(json.dumps({"text": text}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return str(folder)


def recipe_of(texts: str, out: Path | str) -> dict[str, Any]:
    """A recipe as YAML would give it."""
    return {
        "output_dir": str(out),
        "seed": 0,
        "model": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "num_ffn_experts": 3,
            # Random numbers are drawn in every step, so that a resume that forgets their state is seen.
            "attention_dropout": 0.1,
        },
        "tokenizer": {"vocab_size": 300},
        "data": {
            "sequence_length": 32,
            "validation_fraction": 0.1,
            "max_validation_tokens": 256,
            "sources": [
                {"name": "prose", "weight": 3.0, "files": [f"{texts}/prose.jsonl"]},
                {"name": "code", "weight": 1.0, "files": [f"{texts}/code.jsonl"]},
            ],
        },
        "optimization": {"learning_rate": 5e-3, "final_learning_rate": 5e-4, "warmup_steps": 4},
        "training": {
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_steps": 4,
            "eval_steps": 6,
            "use_cpu": True,
        },
    }


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


class Runner:
    """Trains one recipe with overrides; runs whose text and tokenizer are the same share them."""

    def __init__(self, folder: Path, texts: str) -> None:
        self.folder = folder
        self.texts = texts
        self._prepared: dict[str, Prepared] = {}

    def out(self, name: str) -> Path:
        return self.folder / name

    def recipe(self, name: str, *overrides: str) -> Any:
        path = write_recipe(self.folder / f"{name}.yaml", recipe_of(self.texts, self.out(name)))
        return load_recipe(path, overrides)

    def train(self, name: str, *overrides: str, fresh: bool = False, resume: bool | Path = False) -> TrainResult:
        """Trains into ``out(name)``; ``fresh`` reads the data again, as a new process does."""
        recipe = self.recipe(name, *overrides)
        prepared = None if fresh else self.prepared(recipe)
        return train(recipe, prepared=prepared, resume=resume, console=quiet())

    def prepared(self, recipe: Any) -> Prepared:
        t = recipe.training
        key = repr((recipe.data, recipe.tokenizer, recipe.seed, t["max_steps"], t["per_device_train_batch_size"],
                    t.get("gradient_accumulation_steps")))  # fmt: skip
        if key not in self._prepared:
            self._prepared[key] = prepare(recipe, quiet())
        return self._prepared[key]


def logged(run: Path, key: str = "lm_loss") -> list[dict[str, Any]]:
    """The entries of metrics.jsonl that have ``key``."""
    entries = [json.loads(line) for line in (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if key in entry]


def curve(run: Path) -> list[tuple[float, ...]]:
    """What a bit-exact resume must repeat of every step: its losses, norms, rates and routing."""
    return [tuple(v for k, v in sorted(entry.items()) if k != "tokens_per_second") for entry in logged(run)]


def weights(folder: Path) -> dict[str, Tensor]:
    """Of a saved model or of a checkpoint."""
    if checkpoint.is_checkpoint(folder):
        return dcp.read_weights(folder, dcp.weights(folder))
    return load_file(folder / "model.safetensors")


def assert_same_run(run: Path, reference: Path) -> None:
    """Both logged the same numbers, each step once, and ended with the same weights, bit for bit."""
    steps = [entry["step"] for entry in logged(run)]
    assert steps == [entry["step"] for entry in logged(reference)]
    assert steps == list(range(1, len(steps) + 1))
    assert curve(run) == curve(reference)
    expected = weights(reference)
    actual = weights(run)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def at_step(
    step: int | None, action: Callable[[dict[str, Any]], object], event: str = "on_step_end"
) -> AbstractContextManager[Any]:
    """While the block runs, trainings call ``action`` at that step's event, or at every step's, before all else.

    It rides on the callback that handles signals, the first of the run's own. The action gets what callbacks get:
    model, optimizer, lr_scheduler and so on.
    """
    original = getattr(Interrupts, event)

    def patched(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if step is None or state.global_step == step:
            action(kwargs)
        original(self, args, state, control, **kwargs)

    return mock.patch.object(Interrupts, event, patched)


class Crash(BaseException):
    """Stands for the end of the process: nothing in the program may handle it."""


def crash(_: object) -> None:
    raise Crash
