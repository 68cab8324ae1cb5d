"""What one process of a training run reads: its micro-batches, in order, from any one on.

Micro-batch m of a run is its samples m * batch_size to (m + 1) * batch_size - 1. Among the R processes that see
different data, number r reads the micro-batches r, r + R, r + 2 R, …. An optimizer step takes a fixed number of
micro-batches, so what it learns from is the same at any R, and a run may go on with another R than it began with.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

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
        data: a stream that goes on at ``first`` has been given the state of that place (``load_state_dict``).
        rank: which of the ``ranks`` processes that see different data this one is.
        first: micro-batches of the run, over all processes, that are done; a multiple of ``ranks``.
        num_workers: processes that gather samples in memory; a stream has its own thread and takes none.

    Raises:
        ConfigError: a stream is asked for workers, or its lanes cannot be shared equally by the processes.
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
    if data.lanes % ranks:
        raise ConfigError(
            f"data.stream_lanes={data.lanes} is not a multiple of the {ranks} processes that read different data; set "
            f"it to {-(-data.lanes // ranks) * ranks}, or go on with a number of processes that divides it"
        )
    stream = _Stream(partial(data.micro_batches, batch_size, rank=rank, ranks=ranks, first=first), len(mine))
    return DataLoader(stream, batch_size=None, **shared)


class _MicroBatches(Sampler[list[int]]):
    """The sample numbers of each micro-batch."""

    def __init__(self, mine: range, done: int, batch_size: int):
        self.mine, self.done, self.batch_size = mine, done, batch_size

    def __len__(self) -> int:
        return len(self.mine)

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.mine[self.done :]:
            yield list(range(number * self.batch_size, (number + 1) * self.batch_size))


class _Stream(IterableDataset[Sample]):
    """What ``read`` yields, of a known length."""

    def __init__(self, read: Callable[[], Iterator[Sample]], length: int):
        self.read, self.length = read, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Sample]:
        return self.read()
