"""Resuming a stream under a Trainer that finds its place by throwing batches away."""

import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ..data import StreamingData

_FILE = "stream.json"


class CountedStream(IterableDataset[dict[str, Tensor]]):
    """A stream that starts in the middle and still has all of its samples.

    Trainer fetches and discards the samples before a checkpoint, which keeps its own counts and random states exact.
    Reading and tokenising them again could take hours, so blank ones stand in for them.

    Args:
        checkpoint: where to start; None for the beginning.
    """

    def __init__(self, stream: StreamingData, checkpoint: Path | None) -> None:
        self.stream = stream
        self.blanks = 0
        if checkpoint is not None:
            state = json.loads((checkpoint / _FILE).read_text(encoding="utf-8"))
            stream.load_state_dict(state)
            self.blanks = state["samples"]

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        blank = torch.zeros(self.stream.sequence_length, dtype=torch.int64)
        yield from repeat({"input_ids": blank, "labels": blank}, self.blanks)
        for batch in self.stream.micro_batches(1, first=self.blanks):
            yield {name: rows[0] for name, rows in batch.items()}

    def save(self, samples: int, folder: Path) -> None:
        """Writes the place after the run's first ``samples`` samples into a checkpoint."""
        (folder / _FILE).write_text(json.dumps(self.stream.state_dict(samples)), encoding="utf-8")
