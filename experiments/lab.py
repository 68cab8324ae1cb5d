"""What an experiment asks for: trained models and their numbers, by variant and seed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moepp.data import encode, load_corpus, load_tokenizer
from moepp.errors import DataError
from moepp.model import MoEPPForCausalLM, load_model
from moepp.train import load_recipe

from .evaluated import Questions
from .paired import Paired, paired
from .pool import Pool
from .record import Record
from .runs import Run
from .scales import Scale
from .variants import VANILLA, Variant

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Lab:
    """The models of one scale."""

    scale: Scale
    pool: Pool
    checkpoints: tuple[Path, ...] = ()
    """Folders of models that the user gave besides."""
    device: str = "cpu"
    questions: Questions = field(default_factory=Questions)
    """What models are scored on besides the loss."""

    def run(self, variant: Variant, seed: int) -> Run:
        return Run(self.scale, variant, seed)

    def records(self, variant: Variant) -> dict[int, Record]:
        """By seed, without the runs that diverged.

        Raises:
            DataError: all of them did.
        """
        found = {seed: self.pool.record(self.run(variant, seed)) for seed in self.scale.seeds}
        whole = {seed: one for seed, one in found.items() if one.failure is None}
        if not whole:
            raise DataError(f"every run of {variant.name} diverged: {found[self.scale.seeds[0]].failure}")
        return whole

    def losses(self, variant: Variant) -> dict[int, float]:
        """Final validation loss by seed, nats per token."""
        return {seed: one.loss for seed, one in self.records(variant).items()}

    def mean_loss(self, variant: Variant) -> float:
        """Over the seeds."""
        return statistics.fmean(self.losses(variant).values())

    def difference(self, ours: Variant, theirs: Variant) -> Paired:
        """Of the final validation losses, in nats per token; negative where ``ours`` is better."""
        return paired(self.losses(ours), self.losses(theirs))

    def model(self, variant: Variant, seed: int) -> MoEPPForCausalLM:
        """A trained model, for inference."""
        return load_model(self.pool.path(self.run(variant, seed)), device=self.device)

    def tokenizer(self, variant: Variant, seed: int) -> "PreTrainedTokenizerBase":
        return load_tokenizer(str(self.pool.path(self.run(variant, seed))))

    @cached_property
    def text(self) -> dict[str, list[str]]:
        """Held-out documents by source."""
        corpus = load_corpus(load_recipe(self.scale.recipe).data)
        return {source.name: list(source.validation) for source in corpus.sources}

    def blocks(self, length: int, variant: Variant = VANILLA) -> dict[str, list[Tensor]]:
        """Held-out text by source in blocks of so many tokens.

        Args:
            variant: one that is trained, for its tokenizer: all of the scale's models have the same.
        """
        tokenizer = self.tokenizer(variant, self.scale.seeds[0])
        return {source: cut(documents, tokenizer, length) for source, documents in self.text.items()}


def cut(documents: Sequence[str], tokenizer: "PreTrainedTokenizerBase", length: int) -> list[Tensor]:
    """The documents' tokens one after the other, as in training, in blocks of so many."""
    ids = torch.from_numpy(encode(documents, tokenizer).astype("int64"))
    return list(ids[: len(ids) // length * length].view(-1, length))
