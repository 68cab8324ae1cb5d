"""Training samples from sources that are read while training.

Each sample's source is drawn by weight, as for data in memory; each source packs its own documents on the fly, in the
order of its shards, which are shuffled by seed and pass. There is no shuffle buffer: it would make the order depend on
what a crash lost.

Resuming is exact and by two ways. ``skip(n)`` reads and tokenises the first n samples again: always possible, slow
late in a run. ``state_dict(consumed)`` names the documents that a sample shortly before ``consumed`` begins in, and
``load_state_dict`` reads on from there: it re-reads at most one shard per source, and tokenises almost nothing.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import DataError
from .hub import Stream
from .mixture import iterate_sources
from .packing import BATCH, Sample, encode, to_sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SNAPSHOT_EVERY = 1024
_SNAPSHOTS = 16  # far more samples than a loader reads ahead


class Position(NamedTuple):
    """Where the next token of one source is.

    Attributes:
        epoch: passes over the source before this one.
        shard: shards read before this one, in the order of this pass.
        document: documents of this shard read before this one.
        token: tokens already taken, counted from this document's first.
    """

    epoch: int = 0
    shard: int = 0
    document: int = 0
    token: int = 0


class StreamingData(IterableDataset[Sample]):
    """The first ``num_samples`` samples of an endless mixture; sample i is a function of the seed and i.

    Read it in the training process, without loader workers. In a distributed run one process reads and sends the
    others their part (``accelerate`` does so for iterable data).

    Args:
        streams: of each source.
        names: of each source, for errors.
        weights: of each source; they sum to one.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        names: Sequence[str],
        weights: Sequence[float],
        tokenizer: "PreTrainedTokenizerBase",
        *,
        sequence_length: int,
        seed: int,
        num_samples: int,
    ):
        self.streams, self.names, self.weights = list(streams), list(names), list(weights)
        self.tokenizer, self.sequence_length, self.seed = tokenizer, sequence_length, seed
        self.num_samples = num_samples
        self._first = 0
        self._snapshots: deque[tuple[int, list[Position]]] = deque(maxlen=_SNAPSHOTS)
        self._start: tuple[int, list[Position]] = (0, [Position() for _ in self.streams])

    def __len__(self) -> int:
        return self.num_samples

    def skip(self, samples: int) -> None:
        """Let the next iteration begin at sample number ``samples``, counted from the run's first."""
        self._first = samples
        self._start = (0, [Position() for _ in self.streams])

    def state_dict(self, consumed: int) -> dict[str, Any]:
        """What ``load_state_dict`` needs to continue at sample ``consumed``: a few integers per source.

        ``consumed`` is the trainer's count, not this data set's: a loader reads ahead.
        """
        earlier = [snapshot for snapshot in [self._start, *self._snapshots] if snapshot[0] <= consumed]
        sample, positions = max(earlier, default=(0, [Position() for _ in self.streams]))
        by_name = {name: [*position] for name, position in zip(self.names, positions, strict=True)}
        return {"consumed": consumed, "sample": sample, "positions": by_name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken; ``DataError`` when it is of other sources."""
        positions: Any = state.get("positions", {})
        if list(positions) != self.names:
            raise DataError(
                f"data state is of the sources {[*positions]} and the recipe has {self.names}; "
                "resume with the recipe that wrote it"
            )
        self._first = int(state["consumed"])
        self._start = (int(state["sample"]), [Position(*position) for position in positions.values()])

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        if worker is not None:
            raise DataError(
                f"dataloader_num_workers={worker.num_workers}: every worker would read the whole stream, "
                "and none could say where it is; use 0"
            )
        start, positions = self._start
        self._snapshots.clear()
        readers = [
            _Reader(stream, name, self.tokenizer, position, (self.seed, index))
            for index, (stream, name, position) in enumerate(zip(self.streams, self.names, positions, strict=True))
        ]
        drawn = iterate_sources(self.weights, self.seed, start)
        for sample, source in zip(range(start, self.num_samples), drawn, strict=False):
            if sample % _SNAPSHOT_EVERY == 0:
                self._snapshots.append((sample, [reader.position for reader in readers]))
            block = readers[source].take(self.sequence_length)
            if sample >= self._first:
                yield to_sample(block)


class _Reader:
    """The endless tokens of one source, and where they are."""

    def __init__(
        self, stream: Stream, name: str, tokenizer: "PreTrainedTokenizerBase", start: Position, seed: tuple[int, int]
    ):
        self.stream, self.name, self.tokenizer, self.seed = stream, name, tokenizer, seed
        self._documents = self._read(start)
        self._begin, self._taken = start, start.token  # where the tokens at hand start, and how many of them are taken
        self._tokens, self._next = self._encode_batch()

    @property
    def position(self) -> Position:
        return self._begin._replace(token=self._taken)

    def take(self, count: int) -> np.ndarray:
        pieces: list[np.ndarray] = []
        while count:
            if self._taken == len(self._tokens):
                self._begin, self._taken = self._next, 0
                self._tokens, self._next = self._encode_batch()
            piece = self._tokens[self._taken : self._taken + count]
            pieces.append(piece)
            self._taken += len(piece)
            count -= len(piece)
        return np.concatenate(pieces)

    def _encode_batch(self) -> tuple[np.ndarray, Position]:
        """The tokens of the next documents, and the position after them."""
        batch = list(islice(self._documents, BATCH))
        return encode([text for text, _ in batch], self.tokenizer), batch[-1][1]

    def _read(self, start: Position) -> Iterator[tuple[str, Position]]:
        """Every document from ``start`` on, with the position after it."""
        epoch, first_shard, first_document = start.epoch, start.shard, start.document
        while True:
            order = np.random.default_rng([*self.seed, epoch]).permutation(self.stream.num_shards)
            empty = not (first_shard or first_document)
            for shard in range(first_shard, len(order)):
                documents = self.stream.read_shard(int(order[shard]))
                for number, text in enumerate(islice(documents, first_document, None), start=first_document):
                    empty = False
                    yield text, Position(epoch, shard, number + 1)
                first_document = 0
            if empty:
                raise DataError(f"data source {self.name!r} has no training documents; check its split and filters")
            epoch, first_shard = epoch + 1, 0
