"""What a run needs before its model: text, tokenizer, samples, and the configuration that follows from them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..data import (
    Corpus,
    Data,
    TrainingData,
    build_data,
    check_vocabulary,
    load_corpus,
    load_tokenizer,
    sample_documents,
    tokenizer_hash,
    train_tokenizer,
)
from ..errors import ConfigError, DataError
from ..model import MoEPPConfig
from .distributed import from_first
from .ranks import agreed
from .recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Prepared:
    """Text, tokenizer and samples: what several runs on the same data can share."""

    corpus: Corpus
    tokenizer: "PreTrainedTokenizerBase"
    data: Data


def prepare(recipe: Recipe, console: Console, *, saved_tokenizer: Path | None = None) -> Prepared:
    """Reads the corpus, loads or trains the tokenizer, packs the samples.

    Args:
        saved_tokenizer: a folder with the tokenizer that this run trained before it was interrupted.

    Raises:
        ConfigError, DataError: the data cannot be used, or is less than one step takes.
    """
    recipe.model_config()  # what cannot work is refused before the slow part
    with console.status("reading the corpus"):
        corpus = agreed("read the corpus", lambda: load_corpus(recipe.data))
    path = recipe.tokenizer.path or saved_tokenizer or recipe.initial_weights
    with console.status("training the tokenizer" if path is None else "loading the tokenizer"):
        tokenizer = from_first("prepared the tokenizer", lambda: _tokenizer(recipe, path, corpus))
    with console.status("tokenising") as status:

        def show(what: str, done: int, total: int | None) -> None:
            status.update(f"tokenising {what}: {done}/{total or '?'} documents")

        data = agreed("tokenised the corpus", lambda: _samples(recipe, corpus, tokenizer, show))
    return Prepared(corpus, tokenizer, data)


def _tokenizer(recipe: Recipe, path: str | Path | None, corpus: Corpus) -> "PreTrainedTokenizerBase":
    if path is None:
        tokenizer = train_tokenizer(sample_documents(corpus), recipe.tokenizer.vocab_size)
    else:
        tokenizer = load_tokenizer(str(path))
    if (vocab_size := recipe.model.get("vocab_size")) is not None:
        check_vocabulary(tokenizer, vocab_size)
    return tokenizer


def _samples(recipe: Recipe, corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", progress: Progress) -> Data:
    samples = recipe.samples_per_step
    num_samples = recipe.training["max_steps"] * samples
    data = build_data(
        recipe.data, tokenizer, seed=recipe.seed, num_samples=num_samples, corpus=corpus, progress=progress
    )
    if isinstance(data.train, TrainingData) and (blocks := sum(map(len, data.train.blocks))) < samples:
        raise DataError(
            f"data: {blocks} samples of data.sequence_length={recipe.data.sequence_length} are less than the {samples} "
            "of one step; add text, or lower training.per_device_train_batch_size or data.sequence_length"
        )
    return data


def model_config(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> MoEPPConfig:
    config = recipe.model_config(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if recipe.data.sequence_length > config.max_position_embeddings:
        raise ConfigError(
            f"data.sequence_length={recipe.data.sequence_length} exceeds "
            f"model.max_position_embeddings={config.max_position_embeddings}; lower one or raise the other"
        )
    return config


def identity_of(recipe: Recipe, config: MoEPPConfig, prepared: Prepared) -> dict[str, Any]:
    """What must be the same for a resumed run to go on as if it had never stopped."""
    return {
        **{f"model.{name}": getattr(config, name) for name in MoEPPConfig.__annotations__},
        "data (corpus hash)": prepared.corpus.hash,
        "data.sequence_length": recipe.data.sequence_length,
        "data (weights)": [source.weight for source in prepared.corpus.sources],
        "tokenizer (hash)": tokenizer_hash(prepared.tokenizer),
        "seed": recipe.seed,
        "training (samples per step)": recipe.samples_per_step,
    }
