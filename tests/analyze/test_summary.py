"""What is kept of a table, and what it takes to sum one up."""

import tracemalloc
from dataclasses import fields, replace

import numpy as np

from moepp.analyze import Document, RoutingTable, summarize
from moepp.analyze.sample import SAMPLE

from .factory import random_table


def arrays_of(table: RoutingTable) -> list[np.ndarray]:
    return [getattr(table, field.name) for field in fields(table) if isinstance(getattr(table, field.name), np.ndarray)]


def test_a_summary_keeps_a_sample_and_takes_less_memory_than_its_table() -> None:
    table = random_table(60_000, 6)
    table = replace(table, document=np.zeros_like(table.document), documents=(Document("all", "a"),))
    size = sum(array.nbytes for array in arrays_of(table))
    tracemalloc.start()
    summary = summarize(table)
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (summary.num_tokens, summary.sample.num_tokens) == (60_000, SAMPLE)
    assert not any(np.shares_memory(*pair) for pair in zip(arrays_of(summary.sample), arrays_of(table), strict=True))
    assert left < size / 10
    assert peak < size, f"{peak / table.num_tokens:.0f} bytes a token, of {size / table.num_tokens:.0f}"
