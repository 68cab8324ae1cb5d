"""The part of a text that a page shows token by token: the rest of a table need not be kept for it."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .routing_table import RoutingTable

SAMPLE = 4000  # tokens of text, at most
_DOCUMENTS = 8  # that share the sample, where each is long enough
_MOST_DOCUMENTS = 24


@dataclass(frozen=True)
class Extract:
    """A part of a document: rows ``start`` to ``stop`` of the table."""

    document: int
    start: int
    stop: int


def sample(table: RoutingTable) -> RoutingTable:
    """The rows of ``SAMPLE`` tokens, copied; documents and vocabulary are those of all the text."""
    rows = rows_of(choose_extracts(table, SAMPLE))
    names = ("expert", "score", "weight", "kept", "entropy", "loss", "token", "position", "document")
    return replace(table, **{name: getattr(table, name)[rows] for name in names})


def rows_of(extracts: Sequence[Extract]) -> np.ndarray:
    """Of the table that they were chosen from."""
    return np.concatenate([np.arange(one.start, one.stop) for one in extracts])


def choose_extracts(table: RoutingTable, tokens: int) -> list[Extract]:
    """The beginnings of documents, ``tokens`` in all: from each source in turn, those that are long enough first."""
    starts = np.searchsorted(table.document, np.arange(len(table.documents) + 1))
    share = max(1, tokens // min(_DOCUMENTS, len(table.documents)))
    found: list[Extract] = []
    for document in _in_turn(table, np.minimum(np.diff(starts), share)):
        start = int(starts[document])
        length = min(int(starts[document + 1]) - start, share, tokens)
        if length == 0 or len(found) == _MOST_DOCUMENTS:
            break
        found.append(Extract(document, start, start + length))
        tokens -= length
    return found


def _in_turn(table: RoutingTable, length: np.ndarray) -> Iterator[int]:
    """Document after document, from each source in turn, the longest of a source first."""
    order = np.argsort(-length, kind="stable").tolist()
    queues = [[at for at in order if table.documents[at].source == source] for source in table.sources]
    for turn in itertools.zip_longest(*queues):
        yield from (document for document in turn if document is not None)
