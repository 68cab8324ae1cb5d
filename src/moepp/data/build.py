"""The one entry: a specification and a tokenizer in, what a trainer needs out."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .hashing import digest
from .hub import Stream
from .packing import Progress, TrainingData, ValidationData, encode_all, to_blocks
from .sources import Corpus, Source, load_corpus
from .spec import DataSpec
from .streaming import StreamingData
from .tokenizer import tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger("moepp.data")

Row = dict[str, str | float | int | None]


@dataclass(frozen=True)
class Data:
    """What a run trains and validates on.

    Attributes:
        train: in memory a map-style data set; with any streaming source one that is read on the way.
        validation: by source.
        hash: sha256 of what decides which sample comes when: corpus, weights, tokenizer, length, seed and, of streaming
            text, the lanes.
        corpus_hash: sha256 of the text alone, to compare runs with.
        rows: a table, one row per source and split: source, split, weight, documents, bytes, tokens, bytes_per_token
            and, for training data, epochs (how often this run sees the source); ``None`` where unknown.
    """

    train: TrainingData | StreamingData
    validation: dict[str, ValidationData]
    hash: str
    corpus_hash: str
    rows: list[Row]


def build_data(
    spec: DataSpec,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    seed: int,
    num_samples: int,
    progress: Progress | None = None,
    corpus: Corpus | None = None,
) -> Data:
    """Read, tokenise, pack and mix.

    Args:
        seed: of the order of documents, blocks and sources.
        num_samples: training samples of the whole run: steps times samples per step.
        progress: called as documents are tokenised.
        corpus: the result of ``load_corpus(spec)``, when a tokenizer was trained on it before.

    Raises:
        ConfigError, DataError: the specification or the text cannot be used; the message names the field.
    """
    corpus = corpus or load_corpus(spec)
    rows = corpus.describe()
    by_split = {(row["source"], row["split"]): row for row in rows}
    weights = [source.weight for source in corpus.sources]

    validation: dict[str, ValidationData] = {}
    for source in corpus.sources:
        held_out = _validation(source, spec, tokenizer, progress)
        if held_out is not None:
            validation[source.name], tokens = held_out
            by_split[source.name, "validation"].update(
                tokens=tokens, bytes_per_token=validation[source.name].bytes_per_token
            )

    identity = [corpus.hash, weights, tokenizer_hash(tokenizer), spec.sequence_length, seed]
    if any(source.streaming for source in corpus.sources):
        identity.append(spec.stream_lanes)
        streams = [s.train if isinstance(s.train, Stream) else Stream.of(s.train) for s in corpus.sources]
        names = [source.name for source in corpus.sources]
        train: TrainingData | StreamingData = StreamingData(
            *(streams, names, weights, tokenizer),
            sequence_length=spec.sequence_length,
            seed=seed,
            num_samples=num_samples,
            lanes=spec.stream_lanes,
        )
    else:
        blocks: list[np.ndarray] = []
        for index, source in enumerate(corpus.sources):
            assert isinstance(source.train, list)
            order = np.random.default_rng([seed, index]).permutation(len(source.train))
            documents = [source.train[position] for position in order]
            tokens, size = _encode(documents, tokenizer, progress, f"{source.name} train")
            blocks.append(to_blocks(tokens, spec.sequence_length, f"data source {source.name!r}: its training part"))
            by_split[source.name, "train"].update(
                tokens=len(tokens),
                bytes_per_token=size / len(tokens),
                epochs=num_samples * source.weight / len(blocks[-1]),
            )
        train = TrainingData(blocks, weights, seed=seed, num_samples=num_samples)

    return Data(train, validation, digest(identity), corpus.hash, rows)


def _validation(
    source: Source, spec: DataSpec, tokenizer: "PreTrainedTokenizerBase", progress: Progress | None
) -> tuple[ValidationData, int] | None:
    """The held-out blocks and how many tokens were read; ``None`` for a source that holds nothing out."""
    if isinstance(source.validation, list) and not source.validation:
        return None
    limit = spec.max_validation_tokens
    tokens, size = _encode(
        source.validation,
        tokenizer,
        progress,
        f"{source.name} validation",
        max_tokens=limit if isinstance(source.validation, Stream) else None,
    )
    blocks = to_blocks(tokens, spec.sequence_length, f"data source {source.name!r}: its validation part")
    return ValidationData(blocks, size / len(tokens), max_tokens=limit), len(tokens)


def _encode(
    documents: Iterable[str],
    tokenizer: "PreTrainedTokenizerBase",
    progress: Progress | None,
    what: str,
    max_tokens: int | None = None,
) -> tuple[np.ndarray, int]:
    total = len(documents) if isinstance(documents, list) else None
    report = None if progress is None else partial(_report, progress, what, total)
    return encode_all(documents, tokenizer, max_tokens=max_tokens, progress=report)


def _report(progress: Progress, what: str, total: int | None, done: int) -> None:
    progress(what, done, total)
