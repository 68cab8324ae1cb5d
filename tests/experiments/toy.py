"""A scale of models of a few thousand parameters, trained for tenths of a second."""

import pydoc_data.topics
import textwrap
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from experiments.evaluated import Questions
from experiments.lab import Lab
from experiments.pool import Pool
from experiments.runs import Run
from experiments.scales import Scale
from moepp.evaluate import Evaluation, Score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from moepp.model import MoEPPForCausalLM


def toy_scale(folder: Path) -> Scale:
    """Its recipe and its text lie in ``folder``; the first who asks writes them there."""
    try:
        folder.mkdir(parents=True)
        _write(folder)
    except FileExistsError:
        while not (folder / "toy.yaml").is_file():
            time.sleep(0.05)
    return Scale("toy", folder / "toy.yaml", folder / "results", (0, 1), (), long_context=1024, layer="tiny")


def _write(folder: Path) -> None:
    texts = folder / "texts"
    texts.mkdir()
    topics = sorted(pydoc_data.topics.topics.items())
    for index, (_, text) in enumerate(topics[:40]):
        (texts / f"topic-{index}.txt").write_text(text[:4000], encoding="utf-8")
        (texts / f"wrapped-{index}.txt").write_text(textwrap.indent(text[:4000], "    "), encoding="utf-8")
    recipe = {
        "output_dir": "unset",
        "seed": 0,
        "model": {
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "num_ffn_experts": 8,
            "tie_word_embeddings": True,
            "combine": "renormalize",
            "capacity_factor": None,
            "router_aux_loss_coef": 0.05,
        },
        "tokenizer": {"vocab_size": 300},
        "data": {
            "sequence_length": 32,
            "validation_fraction": 0.25,
            "max_validation_tokens": 2048,
            "sources": [
                {"name": "topics", "files": [f"{texts}/topic-*.txt"]},
                {"name": "wrapped", "files": [f"{texts}/wrapped-*.txt"]},
            ],
        },
        "optimization": {"learning_rate": 5e-3, "final_learning_rate": 5e-4, "warmup_steps": 2},
        "training": {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 32,
            "logging_steps": 2,
            "save_steps": 6,
            "eval_steps": 6,
            "use_cpu": True,
            "report_to": "none",
        },
    }
    (folder / "aside.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (folder / "aside.yaml").rename(folder / "toy.yaml")


class Guesses(Questions):
    """Scores without questions: those of the real ones mean nothing here, and cost half a minute."""

    def key(self) -> str:
        return "guesses"

    def prompts(self) -> dict[str, list[str]]:
        return {"line": ["def find(self):", "for name in"], "name": ["self.find = find"]}

    def evaluate(self, model: "MoEPPForCausalLM", tokenizer: "PreTrainedTokenizerBase") -> Evaluation:
        tasks = {"line": 0.3 + model.config.tau / 10, "name": 0.25}
        return Evaluation([_score(task, score, model.num_parameters()) for task, score in tasks.items()], [])


def _score(task: str, score: float, tokens: int) -> Score:
    return Score(
        task=f"stdlib_{task}",
        label=task,
        metric="acc",
        score=score,
        standard_error=0.02,
        chance=0.25,
        shots=0,
        items=100,
        requests_cut=0,
        ffn_per_token=1.2,
        tokens=tokens,
        metrics={"acc,none": score},
        baselines={"unigram": 0.25},
        published=None,
    )


def toy_lab(folder: Path) -> Lab:
    """A pool beside the recipe."""
    return Lab(toy_scale(folder), Pool(folder / "pool", console=Console(file=StringIO())), questions=Guesses())


def fill(lab: Lab, runs: Sequence[Run]) -> None:
    """Trains what is missing, and waits for what another worker trains."""
    assert lab.pool.fill(runs)
