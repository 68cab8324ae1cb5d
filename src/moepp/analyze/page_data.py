"""What the page's scripts get: a sample of the text with every choice in it, and numbers over all tokens.

The sample is packed into bytes and kept small enough for a page to load at once, however many layers and models there
are; the numbers are the tables' own, rounded.

T tokens, L MoE layers, K top-k, E all experts.
"""

import base64
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import EXPERT_TYPES
from .routing_table import RoutingTable
from .summary import Summary
from .tables import load_aim, ratio

SAMPLE = 4000  # tokens of text, at most
_SAMPLE_BYTES = 750_000  # of all models' choices together, before base64 makes them a third larger
_DOCUMENTS = 8  # that share the sample, where each is long enough
_MOST_DOCUMENTS = 24
_TYPES = 6000  # rows of all models' tables of token types together, about
_UNPREDICTED = 0xFFFF
_FEW = 20  # tokens that a mean loss needs to be drawn


@dataclass(frozen=True)
class Extract:
    """A part of a document: rows ``start`` to ``stop`` of the table."""

    document: int
    start: int
    stop: int


def page_data(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """Everything that ``page.js`` reads, of models by name. Models that saw the same tokens share one text."""
    tables = [summary.table for summary in summaries.values()]
    texts: list[RoutingTable] = []
    for table in tables:
        if not any(_same_text(text, table) for text in texts):
            texts.append(table)
    tokens = min(SAMPLE, _SAMPLE_BYTES // sum(map(_token_bytes, tables)))
    extracts = [choose_extracts(text, tokens) for text in texts]
    shown = [_shown_types(text, part, _TYPES // (len(tables) + 1)) for text, part in zip(texts, extracts, strict=True)]
    models = []
    for name, summary in summaries.items():
        at = next(at for at, text in enumerate(texts) if _same_text(text, summary.table))
        models.append({"name": name, "text": at} | _model(summary, _rows(extracts[at]), shown[at]))
    return {"texts": [_text(*parts) for parts in zip(texts, extracts, shown, strict=True)], "models": models}


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


def _same_text(one: RoutingTable, other: RoutingTable) -> bool:
    return (
        one.documents == other.documents
        and one.vocabulary == other.vocabulary
        and np.array_equal(one.token, other.token)
        and np.array_equal(one.document, other.document)
    )


def _token_bytes(table: RoutingTable) -> int:
    """A token's choices in the sample: expert, weight, kept, entropy, loss."""
    return table.num_layers * (table.top_k * (table.expert.itemsize + 2) + 1) + 2


def _shown_types(table: RoutingTable, extracts: Sequence[Extract], most: int) -> np.ndarray:
    """Token ids, ascending: the most frequent ones and those of the sample."""
    ids, counts = np.unique(table.token, return_counts=True)
    frequent = ids[np.argsort(-counts, kind="stable")[:most]]
    return np.union1d(frequent, table.token[_rows(extracts)])


def _rows(extracts: Sequence[Extract]) -> np.ndarray:
    return np.concatenate([np.arange(one.start, one.stop) for one in extracts])


def _text(table: RoutingTable, extracts: Sequence[Extract], shown: np.ndarray) -> dict[str, Any]:
    ends = np.cumsum([one.stop - one.start for one in extracts]).tolist()
    documents = [table.documents[one.document] for one in extracts]
    ids, counts = np.unique(table.token, return_counts=True)
    return {
        "documents": [
            {"name": document.name, "source": document.source, "start": start, "end": end}
            for document, start, end in zip(documents, [0, *ends], ends, strict=False)
        ],
        "token": np.searchsorted(shown, table.token[_rows(extracts)]).tolist(),
        "vocabulary": [table.vocabulary[token] for token in shown.tolist()],
        "count": counts[np.searchsorted(ids, shown)].tolist(),
    }


def _model(summary: Summary, rows: np.ndarray, shown: np.ndarray) -> dict[str, Any]:
    table, scores, losses = summary.table, summary.scores, summary.losses
    by_source = summary.per_token_by_source["ffn"]
    loads = dict(zip(summary.load_by_source.groups, summary.load_by_source.share, strict=True))
    correlations = {"first": summary.correlation.first, "ffn": summary.correlation.ffn}
    return {
        "vanilla": summary.vanilla,
        "least": summary.least,
        "layers": table.num_layers,
        "slots": table.top_k,
        "experts": [table.layout.type_of(expert) for expert in range(table.layout.num_experts)],
        "aim": _round(summary.aim),
        "load_aim": _round(load_aim(table.layout, table.facts.tau), 4),
        "sample": _sample(table, rows),
        "range": {kind: _range(table.active(kind)[rows].mean(axis=1)) for kind in EXPERT_TYPES}
        | {"loss": _range(table.loss[rows])},
        "types": _types(summary, shown),
        "load": [["all text", _round(summary.load.share[0], 4)]]
        + [[source, _round(share, 4)] for source, share in loads.items() if len(loads) > 1],
        "ffn_by_layer": _round(summary.per_token["ffn"].layers[0]),
        "ffn_by_source": [list(pair) for pair in zip(by_source.groups, _round(by_source.mean), strict=True)],
        "scores": [
            {"mean": _round(mean, 4), "variance": _round(variance, 5), "density": _round(density)}
            for mean, variance, density in zip(scores.mean, scores.variance, scores.overall, strict=True)
        ],
        "correlation": {name: _round(values) for name, values in correlations.items()},
        "loss_by_ffn": [
            [_round(ffn / table.num_layers), _round(loss), int(tokens)]
            for ffn, loss, tokens in zip(losses.ffn, losses.loss, losses.tokens, strict=True)
            if tokens >= _FEW
        ],
    }


def _sample(table: RoutingTable, rows: np.ndarray) -> dict[str, str | None]:
    kept = table.kept[rows]
    most = np.log(max(2, table.layout.num_experts))
    loss = np.nan_to_num(np.minimum(table.loss[rows] * 1000, _UNPREDICTED - 1), nan=_UNPREDICTED)
    return {
        "expert": _pack(table.expert[rows]),
        "weight": _pack(np.round(table.weight[rows].clip(0, 1) * 255).astype(np.uint8)),
        "kept": None if kept.all() else _pack(kept.astype(np.uint8)),
        "entropy": _pack(np.round((table.entropy[rows] / most).clip(0, 1) * 255).astype(np.uint8)),
        "loss": _pack(np.round(loss).astype("<u2")),
    }


def _types(summary: Summary, shown: np.ndarray) -> dict[str, list[float | None]]:
    """By shown token type: experts per token of each type, half the FFN experts' confidence interval, mean loss."""
    columns: dict[str, list[float | None]] = {}
    for kind, found in summary.types.items():
        order = np.argsort(found.token)
        at = order[np.searchsorted(found.token, shown, sorter=order)]
        columns[kind] = _round(found.mean[at])
        if kind == "ffn":
            columns["error"] = _round((found.high - found.low)[at] / 2)
    table = summary.table
    predicted, size = ~np.isnan(table.loss), int(table.token.max()) + 1
    sums = np.bincount(table.token[predicted], table.loss[predicted], minlength=size)
    columns["loss"] = _round(ratio(sums, np.bincount(table.token[predicted], minlength=size))[shown])
    return columns


def _range(values: np.ndarray) -> list[float]:
    """What nearly all of the sample has; nothing for a sample of nothing."""
    values = values[~np.isnan(values)]
    return np.round(np.quantile(values, (0.02, 0.98)), 2).tolist() if len(values) else []


def _pack(values: np.ndarray) -> str:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode("ascii")


def _round(values: np.ndarray | float, digits: int = 3) -> Any:
    """Nested lists; ``None`` for what there is no number of."""
    rounded = np.asarray(np.round(np.asarray(values, np.float64), digits))
    written = rounded.astype(object)
    written[np.isnan(rounded)] = None
    return written.tolist()
