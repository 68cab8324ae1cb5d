"""One training run: a variant of a scale's recipe with a seed, and the name of the folder that keeps it."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from moepp.data import load_corpus
from moepp.train import Recipe, load_recipe

from .scales import Scale
from .variants import Variant

_CADENCE = ("logging_steps", "eval_steps", "save_steps", "save_total_limit")
"""Settings that leave the trained model as it is."""


@dataclass(frozen=True)
class Run:
    """What to train."""

    scale: Scale
    variant: Variant
    seed: int

    def __str__(self) -> str:
        share = "" if self.variant.length == 1 else f" ({self.variant.length:.3g} of the steps)"
        return f"{self.variant.name}{share}, seed {self.seed}"

    @lru_cache  # noqa: B019 - runs are small and few
    def recipe(self) -> Recipe:
        """The scale's recipe with the variant's changes; where its model goes, the pool says.

        Raises:
            ConfigError: the changes don't fit the recipe.
        """
        plain, variant = _plain(self.scale), self.variant
        steps = round(plain.training["max_steps"] * variant.length)
        changes: dict[str, Any] = {"seed": self.seed, "training.max_steps": steps, "training.eval_steps": steps}
        if variant.ffn_width != 1:
            width = round(plain.model["intermediate_size"] * variant.ffn_width / 8) * 8
            changes["model.intermediate_size"] = width
        if variant.long_context:
            length = self.scale.long_context
            short = plain.data.sequence_length
            batch = max(1, plain.training["per_device_train_batch_size"] * short // length)
            changes |= {"data.sequence_length": length, "model.max_position_embeddings": length}
            changes["training.per_device_train_batch_size"] = batch
        changes |= variant.changes
        return load_recipe(self.scale.recipe, [f"{key}={json.dumps(value)}" for key, value in changes.items()])

    @property
    def tokens(self) -> int:
        """What it trains on."""
        recipe = self.recipe()
        return recipe.training["max_steps"] * recipe.samples_per_step * recipe.data.sequence_length

    @lru_cache  # noqa: B019 - runs are small and few
    def key(self) -> str:
        """A hash of the recipe and of the corpus's text: runs with equal keys are the same run."""
        recipe = dataclasses.asdict(self.recipe())
        del recipe["output_dir"]
        for name in _CADENCE:
            recipe["training"].pop(name, None)
        content = {"recipe": recipe, "corpus": corpus_hash(self.scale)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache
def corpus_hash(scale: Scale) -> str:
    """Of the text that a scale's recipe trains on."""
    return load_corpus(_plain(scale).data).hash


@lru_cache
def _plain(scale: Scale) -> Recipe:
    return load_recipe(scale.recipe)
