"""Resuming a stream under a Trainer that finds its place by throwing batches away."""

import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ..data import StreamingData

STREAM_FILE = "stream.json"


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
            state = json.loads((checkpoint / STREAM_FILE).read_text(encoding="utf-8"))
            stream.load_state_dict(state)
            self.blanks = state["consumed"]

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        blank = torch.zeros(self.stream.sequence_length, dtype=torch.int64)
        yield from repeat({"input_ids": blank, "labels": blank}, self.blanks)
        yield from self.stream

    def state(self, samples: int) -> dict[str, Any]:
        """The place after the run's first ``samples`` samples, for a checkpoint."""
        return self.stream.state_dict(samples)
