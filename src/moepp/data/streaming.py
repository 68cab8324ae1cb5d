"""Training samples from sources that are read while training.

Each sample's source is drawn by weight, as for data in memory. The text of each source is dealt to a fixed number of
*lanes*, each packs its own documents on the fly, in the order of its shards, which are shuffled by seed and pass, and
micro-batch m comes from lane m modulo their number. So several processes read one run's samples without reading each
other's, and which samples a step has depends on the number of lanes, not of processes. There is no shuffle buffer: it
would make the order depend on what a crash lost.

Resuming is exact, with any number of processes that divides the lanes. ``state_dict`` says where each lane is in each
source; from there ``load_state_dict`` reads on: it re-reads at most one shard per lane and source, and tokenises
almost nothing again.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .hub import Stream
from .mixture import iterate_sources
from .packing import Sample, to_sample
from .prefetch import Prefetch
from .reading import Position, Reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AHEAD = 32  # micro-batches
_HISTORY = 64  # micro-batches of a lane that a trainer may have fetched and not finished

_Places = list[Position]  # of one lane, by source


class StreamingData:
    """``num_samples`` samples of an endless mixture, for one process or several.

    Args:
        streams: of each source.
        names: of each source, for errors.
        weights: of each source; they sum to one.
        lanes: parts that the text is read in; the number of processes must divide it.
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
        lanes: int = 1,
    ):
        self.streams, self.names, self.weights = list(streams), list(names), list(weights)
        self.tokenizer = deepcopy(tokenizer)  # two threads must not use one: each call sets it up anew
        self.sequence_length, self.seed, self.num_samples, self.lanes = sequence_length, seed, num_samples, lanes
        self._start_at(0, [[Position()] * len(self.names)] * lanes)

    def __len__(self) -> int:
        return self.num_samples

    def state_dict(self, samples: int) -> dict[str, Any]:
        """Where this process's lanes are after the run's first ``samples`` samples: a few integers per source.

        ``samples`` is the trainer's count, not this object's: it reads ahead. The states of all processes make one with
        :func:`merge_states`, which is what ``load_state_dict`` takes.
        """
        lanes = {
            str(lane): dict(zip(self.names, map(list, _at(history, samples)), strict=True))
            for lane, history in self._history.items()
        }
        return {"samples": samples, "lanes": lanes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state of a whole run was taken; ``DataError`` when it is of other sources or lanes."""
        lanes: dict[str, dict[str, list[int]]] = state.get("lanes", {})
        for places in lanes.values():
            if list(places) != self.names:
                raise DataError(
                    f"data state is of the sources {[*places]} and the recipe has {self.names}; "
                    "resume with the recipe that wrote it"
                )
        if set(lanes) != set(map(str, range(self.lanes))):
            raise DataError(
                f"data state is of {len(lanes)} lanes and data.stream_lanes={self.lanes}; "
                "resume with the recipe that wrote it"
            )
        places = [[Position(*position) for position in lanes[str(lane)].values()] for lane in range(self.lanes)]
        self._start_at(int(state["samples"]), places)

    def micro_batches(self, batch_size: int, *, rank: int = 0, ranks: int = 1, first: int = 0) -> Iterator[Sample]:
        """The micro-batches of one process, as :func:`moepp.data.train_loader` says, read ahead in a thread.

        Raises:
            DataError: while iterating: text cannot be read.
        """
        assert self.lanes % ranks == 0, (self.lanes, ranks)
        assert first * batch_size == self._samples, f"at sample {self._samples}: load_state_dict comes first"
        self._forget(range(rank, self.lanes, ranks))
        return self._prefetched(batch_size, rank, ranks, first)

    def _start_at(self, samples: int, places: Sequence[_Places]) -> None:
        self._samples, self._start = samples, list(places)
        self._forget(range(self.lanes))

    def _forget(self, lanes: range) -> None:
        """Keep no places but the first, and those of no other lanes."""
        # By lane, its latest places, each with the run's samples up to there.
        self._history = {lane: deque([(self._samples, self._start[lane])], _HISTORY) for lane in lanes}

    def _prefetched(self, batch_size: int, rank: int, ranks: int, first: int) -> Iterator[Sample]:
        with closing(Prefetch(self._read(batch_size, rank, ranks, first), _AHEAD)) as batches:
            for number, batch, places in batches:
                self._history[number % self.lanes].append(((number + 1) * batch_size, places))
                yield batch

    def _read(self, batch_size: int, rank: int, ranks: int, first: int) -> Iterator[tuple[int, Sample, _Places]]:
        """Each micro-batch with its number, and where its lane is after it."""
        readers = {lane: self._readers(lane) for lane in range(rank, self.lanes, ranks)}
        drawn = iterate_sources(self.weights, self.seed, first * batch_size)
        for number in range(first, self.num_samples // batch_size):
            sources = list(islice(drawn, batch_size))
            if number % ranks == rank:
                lane = readers[number % self.lanes]
                blocks = np.stack([lane[source].take(self.sequence_length) for source in sources])
                yield number, to_sample(blocks), [reader.position for reader in lane]

    def _readers(self, lane: int) -> list[Reader]:
        parts = zip(self.streams, self.names, self._start[lane], strict=True)
        return [
            Reader(stream, name, self.tokenizer, start, (self.seed, index), lane=lane, lanes=self.lanes)
            for index, (stream, name, start) in enumerate(parts)
        ]


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of a whole run from those of its processes, in any order."""
    lanes = {lane: places for state in states for lane, places in state["lanes"].items()}
    (samples,) = {state["samples"] for state in states}
    return {"samples": samples, "lanes": lanes}


def _at(history: Sequence[tuple[int, _Places]], samples: int) -> _Places:
    """The latest place that is not behind the run's first ``samples`` samples."""
    return next(places for count, places in reversed(history) if count <= samples)
