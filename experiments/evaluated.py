"""Trained models' scores on questions about held-out modules of Python's library, kept beside each model.

An evaluation takes about a minute a model, so its scores stay in the model's folder until the questions change.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moepp.data import digest
from moepp.errors import DataError
from moepp.evaluate import VALIDATION_FRACTION, Evaluation, Score, evaluate_tasks, items_hash
from moepp.evaluate.stdlib_tasks import stdlib_items
from moepp.files import replacing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from moepp.model import MoEPPForCausalLM

    from .lab import Lab
    from .variants import Variant

SCORES_FILE = "scores.json"
KINDS = ("summary", "line", "name")


@dataclass(frozen=True)
class Questions:
    """What models are scored on: the ``stdlib`` tasks, all of their items."""

    def key(self) -> str:
        """Of the items: scores on others are not theirs."""
        return digest(items_hash(kind, VALIDATION_FRACTION) for kind in KINDS)

    def prompts(self) -> dict[str, list[str]]:
        """By task, what is asked; cloze asks what name asks."""
        return {kind: [item["context"] for item in stdlib_items(kind, VALIDATION_FRACTION)] for kind in KINDS}

    def evaluate(self, model: "MoEPPForCausalLM", tokenizer: "PreTrainedTokenizerBase") -> Evaluation:
        return evaluate_tasks(model, tokenizer, ["stdlib"])


def evaluated(lab: "Lab", variant: "Variant", seed: int) -> Evaluation:
    """A trained model's scores, from its folder where they are there."""
    path, key = lab.pool.path(lab.run(variant, seed)) / SCORES_FILE, lab.questions.key()
    found = _read(path, key)
    if found is None:
        found = lab.questions.evaluate(lab.model(variant, seed), lab.tokenizer(variant, seed))
        content = {"items": key, "scores": [dataclasses.asdict(score) for score in found.scores]}
        with replacing(path) as incomplete:
            incomplete.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return found


def _read(path: Path, key: str) -> Evaluation | None:
    """None where there is nothing, or scores on other items.

    Raises:
        DataError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Evaluation([Score(**score) for score in content["scores"]], []) if content["items"] == key else None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged: {error}; remove it, its model is then scored again") from error
