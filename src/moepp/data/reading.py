"""One lane of one source: the endless tokens of its share of the documents, and where they are.

Each pass over a source has its own order of shards, by seed. Of a pass, every lane gets an equal share: whole shards
where there are enough of them; else every lane reads all shards and takes every so-manieth document, which costs
little, for reading is some fifty times faster than tokenising. The shares rotate from pass to pass. Together the
lanes read every document once in each pass, and one that has finished a pass does not wait for the others.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import DataError
from .hub import Stream
from .packing import BATCH, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHARACTERS = 1 << 18  # tokenised at once: of books much fewer than BATCH, lest one burst holds up the training


class Position(NamedTuple):
    """Where the next token of one source is.

    Attributes:
        epoch: passes over the source before this one.
        shard: shards read before this one, in the order of this pass.
        document: documents of this shard read before this one, other lanes' among them.
        token: tokens already taken, counted from this document's first.
    """

    epoch: int = 0
    shard: int = 0
    document: int = 0
    token: int = 0


class Reader:
    """Reads and tokenises lane number ``lane`` of ``lanes``, from ``start`` on.

    Args:
        name: the source's, for errors.
        seed: the run's, and the source's number.
    """

    def __init__(
        self,
        stream: Stream,
        name: str,
        tokenizer: "PreTrainedTokenizerBase",
        start: Position,
        seed: tuple[int, int],
        *,
        lane: int = 0,
        lanes: int = 1,
    ):
        self.stream, self.name, self.tokenizer, self.seed = stream, name, tokenizer, seed
        self.lane, self.lanes = lane, lanes
        self._documents = self._read(start)
        # The tokens at hand, where they begin, how many of them are taken, and the position after them.
        self._tokens, self._begin, self._taken, self._next = encode([], tokenizer), start, start.token, start

    @property
    def position(self) -> Position:
        return self._begin._replace(token=self._taken)

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` tokens.

        Raises:
            DataError: they cannot be read, or there are none.
        """
        pieces: list[np.ndarray] = []
        while count:
            while self._taken >= len(self._tokens):
                self._taken -= len(self._tokens)
                self._begin = self._next
                self._tokens, self._next = self._encode_batch()
            pieces.append(self._tokens[self._taken : self._taken + count])
            self._taken += len(pieces[-1])
            count -= len(pieces[-1])
        return np.concatenate(pieces)

    def _encode_batch(self) -> tuple[np.ndarray, Position]:
        """The tokens of the next documents, and the position after them; of a small source about one pass."""
        texts: list[str] = []
        after, characters = self._begin, 0
        while len(texts) < BATCH and characters < _CHARACTERS and after.epoch == self._begin.epoch:
            text, after = next(self._documents)
            texts.append(text)
            characters += len(text)
        return encode(texts, self.tokenizer), after

    def _read(self, start: Position) -> Iterator[tuple[str, Position]]:
        """Every document from ``start`` on, with the position after it; without end."""
        epoch, first_shard, first_document = start[:3]
        passes = 0  # without a document; the first may begin at the end of one, and a small source has lanes to visit
        while passes <= self.lanes:
            passes += 1
            for place, shard in enumerate(self._shards(epoch)[first_shard:], start=first_shard):
                for number, text in enumerate(self.stream.read_shard(shard)):
                    if number >= first_document and self._is_mine(shard, number, epoch):
                        passes = 0
                        yield text, Position(epoch, place, number + 1)
                first_document = 0
            epoch, first_shard = epoch + 1, 0
        raise DataError(f"data source {self.name!r} has no training documents; check its split and filters")

    @property
    def _whole_shards(self) -> bool:
        return self.stream.num_shards >= self.lanes

    def _shards(self, epoch: int) -> list[int]:
        order = np.random.default_rng([*self.seed, epoch]).permutation(self.stream.num_shards).tolist()
        return [shard for shard in order if not self._whole_shards or self._is_next(shard + epoch)]

    def _is_mine(self, shard: int, number: int, epoch: int) -> bool:
        return self._whole_shards or self._is_next(shard + number + epoch)

    def _is_next(self, count: int) -> bool:
        return count % self.lanes == self.lane
