"""A scale of models of a few thousand parameters, trained for tenths of a second."""

import pydoc_data.topics
import textwrap
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from experiments.evaluated import Questions
from experiments.lab import Lab
from experiments.pool import Pool
from experiments.scales import Scale
from moepp.evaluate import Evaluation, Score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from moepp.model import MoEPPForCausalLM


def toy_scale(folder: Path) -> Scale:
    """Its recipe and its text are written to ``folder``."""
    texts = folder / "texts"
    texts.mkdir(parents=True)
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
            "save_steps": 3,
            "eval_steps": 6,
            "use_cpu": True,
        },
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return Scale("toy", folder / "toy.yaml", folder / "results", seeds=(0, 1), layer="tiny")


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
    """An empty pool beside the recipe."""
    return Lab(toy_scale(folder), Pool(folder / "pool", console=Console(file=StringIO())), questions=Guesses())
