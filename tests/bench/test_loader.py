"""``measure_loader`` by a clock that only the loader moves."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from moepp.bench import loader as module
from moepp.bench import measure_loader
from moepp.data import StreamingData, TrainingData, train_tokenizer
from moepp.data.hub import Stream


@dataclass
class Slow:
    loader: DataLoader[Any]
    clock: list[float]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.clock[0] += 0.25
            yield batch


@pytest.fixture
def slow_loader(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes every micro-batch take a quarter of a second of a clock, which it returns."""
    clock = [0.0]
    original = module.train_loader
    monkeypatch.setattr(module, "train_loader", lambda *args, **settings: Slow(original(*args, **settings), clock))
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    return clock


def test_a_row_says_how_fast_micro_batches_came(slow_loader: list[float]) -> None:
    data = TrainingData([np.zeros((5, 16), np.uint16)], [1.0], seed=0, num_samples=1000)
    row = measure_loader(data, name="recipe", batch_size=4, ranks=2, seconds=5.0)
    assert (row.benchmark, row.variant, row.pass_, row.size) == ("loader", "memory:2", "loading", "recipe")
    assert (row.tokens, row.batch, row.threads, row.dtype) == (64, 4, 1, "int64")
    assert row.median_s == 0.25
    assert row.tokens_per_s == 64 / 0.25
    assert math.isclose(slow_loader[0], 0.25 + 5.0 + 1.0), "one batch, and a round before those that count"


def test_a_stream_is_read_by_what_tokenises(slow_loader: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    stream = Stream.of(["fox and dog", "dog and fox"])
    settings = {"sequence_length": 16, "seed": 0, "num_samples": 1000, "lanes": 4}
    data = StreamingData([stream], ["x"], [1.0], train_tokenizer(["fox and dog"], 300), **settings)
    row = measure_loader(data, name="recipe", batch_size=1, ranks=4, seconds=5.0)
    assert (row.variant, row.threads) == ("stream:4", 3)


def test_a_short_run_is_read_again(slow_loader: list[float]) -> None:
    data = TrainingData([np.zeros((5, 16), np.uint16)], [1.0], seed=0, num_samples=2)
    assert measure_loader(data, name="recipe", batch_size=1, ranks=2, seconds=5.0).median_s == 0.25
