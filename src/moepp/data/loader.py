"""What one process of a training run reads: its micro-batches, in order, from any one on.

Micro-batch m of a run is its samples m * batch_size to (m + 1) * batch_size - 1. Among the R processes that see
different data, number r reads the micro-batches r, r + R, r + 2 R, …. An optimizer step takes a fixed number of
micro-batches, so what it learns from is the same at any R, and a run may go on with another R than it began with.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler, default_collate

from ..errors import ConfigError
from .packing import Sample, TrainingData
from .streaming import StreamingData


def train_loader(
    data: TrainingData | StreamingData,
    *,
    batch_size: int,
    rank: int = 0,
    ranks: int = 1,
    first: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> "DataLoader[Sample]":
    """The micro-batches of process ``rank``: dicts of ``input_ids`` and ``labels``, (batch_size, sequence_length).

    Its length counts the process's micro-batches of the whole run, also when ``first`` skips some of them. It draws
    nothing from torch's global generator.

    Args:
        data: a stream must have been given the state that belongs to ``first``, with its ``load_state_dict``.
        rank: which of the ``ranks`` processes that see different data this one is.
        first: micro-batches of the run, over all processes, that are done; a multiple of ``ranks``.
        num_workers: processes that gather samples in memory; a stream has its own thread and takes none.

    Raises:
        ConfigError: a stream is asked for workers or for more processes than it has parts.
    """
    assert 0 <= rank < ranks, (rank, ranks)
    assert first % ranks == 0, (first, ranks)
    mine = range(rank, len(data) // batch_size, ranks)
    shared: dict[str, Any] = {"pin_memory": pin_memory, "generator": torch.Generator()}
    if isinstance(data, TrainingData):
        sampler = _MicroBatches(mine, first // ranks, batch_size)
        return DataLoader(data, batch_sampler=sampler, num_workers=num_workers, **shared)
    if num_workers:
        raise ConfigError(
            f"training.dataloader_num_workers={num_workers}: a stream is read by one thread of the training process, "
            "which knows where it is; use 0"
        )
    if ranks > 1:
        raise ConfigError(f"a stream for {ranks} processes is not there yet; use one")
    return DataLoader(_Batched(data, batch_size, len(mine)), batch_size=None, **shared)


class _MicroBatches(Sampler[list[int]]):
    """The sample numbers of each micro-batch."""

    def __init__(self, mine: range, done: int, batch_size: int):
        self.mine, self.done, self.batch_size = mine, done, batch_size

    def __len__(self) -> int:
        return len(self.mine)

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.mine[self.done :]:
            yield list(range(number * self.batch_size, (number + 1) * self.batch_size))


class _Batched(IterableDataset[Sample]):
    def __init__(self, data: StreamingData, batch_size: int, length: int):
        self.data, self.batch_size, self.length = data, batch_size, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Sample]:
        samples = iter(self.data)
        while len(batch := list(islice(samples, self.batch_size))) == self.batch_size:
            yield default_collate(batch)
