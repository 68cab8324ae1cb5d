"""From documents to samples: tokens of all documents, each ended by EOS, cut into blocks of equal length.

No padding and no attention mask: a block may begin in the middle of a document and hold several. The last, incomplete
block is dropped. :class:`TrainingData` and :class:`ValidationData` are what a ``DataLoader`` reads.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from .mixture import draw_sources
from .sources import utf8_length
from .tokenizer import check_end_of_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Sample = dict[str, Tensor]
Progress = Callable[[str, int, int | None], None]
"""Called with what is tokenised, the documents done, and how many there are (``None`` when unknown)."""

BATCH = 64  # documents a tokenizer gets at once: enough to use every core


def encode(documents: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """The tokens of a few documents, each followed by EOS, as one array.

    A special token's *name* in a text stays text: a corpus that quotes ``<|endoftext|>`` must not end documents.
    """
    end = check_end_of_text(tokenizer)
    if not documents:
        return np.empty(0, token_dtype(tokenizer))
    rows: list[list[int]] = tokenizer(
        list(documents), add_special_tokens=False, return_attention_mask=False, split_special_tokens=True, verbose=False
    )["input_ids"]  # pyright: ignore[reportAssignmentType]
    return np.concatenate([np.array([*row, end], token_dtype(tokenizer)) for row in rows])


def token_dtype(tokenizer: "PreTrainedTokenizerBase") -> type[np.unsignedinteger]:
    """The smallest type that holds every id."""
    return np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32


def encode_all(
    documents: Iterable[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, int]:
    """The tokens of all documents, and their UTF-8 bytes.

    With ``max_tokens``, reading stops after the batch of documents that reaches it.
    """
    arrays: list[np.ndarray] = [encode([], tokenizer)]
    tokens = size = done = 0
    remaining = iter(documents)
    while (batch := list(islice(remaining, BATCH))) and (max_tokens is None or tokens < max_tokens):
        arrays.append(encode(batch, tokenizer))
        tokens += len(arrays[-1])
        size += sum(map(utf8_length, batch))
        done += len(batch)
        if progress:
            progress(done)
    return np.concatenate(arrays), size


def to_blocks(tokens: np.ndarray, sequence_length: int, what: str) -> np.ndarray:
    """Cut into ``(blocks, sequence_length)``; ``DataError`` when there is not one block."""
    if len(tokens) < sequence_length:
        raise DataError(
            f"{what} has {len(tokens)} tokens and one block needs {sequence_length}; "
            "add text, lower data.sequence_length or remove the source"
        )
    count = len(tokens) // sequence_length
    return tokens[: count * sequence_length].reshape(count, sequence_length)


def to_sample(block: np.ndarray) -> Sample:
    """``input_ids`` and ``labels`` of a block or several, int64 and equal: the model shifts them against each other."""
    return {name: torch.from_numpy(block.astype(np.int64)) for name in ("input_ids", "labels")}


class TrainingData(Dataset[Sample]):
    """Samples of a weighted mixture; sample i is a function of the seed and i, so any order of access is exact.

    Which source sample i comes from is drawn by weight; from each source, every block is seen once, in random order,
    before any is seen again in another.

    Args:
        blocks: of each source, ``(blocks, sequence_length)``.
        weights: of each source; they sum to one.
        num_samples: length of the data set; it only ends it, and changes no sample.
    """

    def __init__(self, blocks: Sequence[np.ndarray], weights: Sequence[float], *, seed: int, num_samples: int):
        self.blocks = list(blocks)
        self.seed = seed
        self.source = draw_sources(weights, seed, num_samples)
        # How many samples of the same source came before: where in the source's own order this one stands.
        self.rank = np.empty(num_samples, np.int64)
        for index in range(len(self.blocks)):
            members = np.flatnonzero(self.source == index)
            self.rank[members] = np.arange(len(members))
        self._order: dict[int, tuple[int, np.ndarray]] = {}  # the latest epoch's permutation of each source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        source = int(self.source[index])
        epoch, position = divmod(int(self.rank[index]), len(self.blocks[source]))
        return to_sample(self.blocks[source][self._permutation(source, epoch)[position]])

    def _permutation(self, source: int, epoch: int) -> np.ndarray:
        known = self._order.get(source)
        if known is None or known[0] != epoch:
            generator = np.random.default_rng([self.seed, source, epoch])
            known = self._order[source] = (epoch, generator.permutation(len(self.blocks[source])))
        return known[1]


class ValidationData(Dataset[Sample]):
    """Consecutive blocks of one source's held-out documents.

    Attributes:
        bytes_per_token: UTF-8 bytes of all held-out documents that were read, by their tokens with EOS; not of the
            chosen blocks alone. Bits per byte = loss in nats per token / ln 2 / ``bytes_per_token``.
    """

    def __init__(self, blocks: np.ndarray, bytes_per_token: float, *, max_tokens: int | None = None):
        count, length = blocks.shape
        kept = count if max_tokens is None else max(1, min(count, max_tokens // length))
        self.blocks = blocks[np.arange(kept) * count // kept]  # evenly spaced: every part of the source counts
        self.bytes_per_token = bytes_per_token

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Sample:
        return to_sample(self.blocks[index])

    def __iter__(self) -> Iterator[Sample]:
        return map(to_sample, self.blocks)
