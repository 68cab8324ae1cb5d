"""What the page's scripts get: a sample of the text with every choice in it, and numbers over all tokens.

The sample is packed into bytes and kept small enough for a page to load at once, however many layers and models there
are; the numbers are the tables' own, rounded.

T tokens, L MoE layers, K top-k, E all experts.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config import EXPERT_TYPES
from .routing_table import RoutingTable
from .sample import SAMPLE, Extract, choose_extracts, rows_of
from .summary import Summary
from .tables import TokenTypes, load_aim

_SAMPLE_BYTES = 750_000  # of all models' choices together, before base64 makes them a third larger
_TYPES = 6000  # rows of all models' tables of token types together, about
_UNPREDICTED = 0xFFFF
_FEW = 20  # tokens that a mean loss needs to be drawn


def page_data(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """Everything that ``page.js`` reads, of models by name. Models that saw the same tokens share one text."""
    texts: dict[str, Summary] = {}
    for one in summaries.values():
        texts.setdefault(one.text, one)
    numbered = list(texts)
    tokens = min(SAMPLE, _SAMPLE_BYTES // sum(_token_bytes(one.sample) for one in summaries.values()))
    extracts = {text: choose_extracts(one.sample, tokens) for text, one in texts.items()}
    shown = {
        text: _shown_types(one, rows_of(extracts[text]), _TYPES // (len(summaries) + 1)) for text, one in texts.items()
    }
    return {
        "texts": [_text(one, extracts[text], shown[text]) for text, one in texts.items()],
        "models": [
            {"name": name, "text": numbered.index(one.text)} | _model(one, rows_of(extracts[one.text]), shown[one.text])
            for name, one in summaries.items()
        ],
    }


def _token_bytes(table: RoutingTable) -> int:
    """A token's choices in the sample: expert, weight, kept, entropy, loss."""
    return table.num_layers * (table.top_k * (table.expert.itemsize + 2) + 1) + 2


def _shown_types(summary: Summary, rows: np.ndarray, most: int) -> np.ndarray:
    """Token ids, ascending: the most frequent ones and those of the sample."""
    types = summary.types["ffn"]
    frequent = types.token[np.lexsort((types.token, -types.count))[:most]]
    return np.union1d(frequent, summary.sample.token[rows])


def _text(summary: Summary, extracts: Sequence[Extract], shown: np.ndarray) -> dict[str, Any]:
    table, types = summary.sample, summary.types["ffn"]
    ends = np.cumsum([one.stop - one.start for one in extracts]).tolist()
    documents = [table.documents[one.document] for one in extracts]
    return {
        "documents": [
            {"name": document.name, "source": document.source, "start": start, "end": end}
            for document, start, end in zip(documents, [0, *ends], ends, strict=False)
        ],
        "token": np.searchsorted(shown, table.token[rows_of(extracts)]).tolist(),
        "vocabulary": [table.vocabulary[token] for token in shown.tolist()],
        "count": types.count[_places(types, shown)].tolist(),
    }


def _places(types: TokenTypes, tokens: np.ndarray) -> np.ndarray:
    """Where each of some token ids stands."""
    order = np.argsort(types.token)
    return order[np.searchsorted(types.token, tokens, sorter=order)]


def _model(summary: Summary, rows: np.ndarray, shown: np.ndarray) -> dict[str, Any]:
    table, scores, losses = summary.sample, summary.scores, summary.losses
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
    """By shown token type: experts per token of each type, the FFN experts' confidence interval, mean loss."""
    columns: dict[str, list[float | None]] = {}
    for kind, found in summary.types.items():
        at = _places(found, shown)
        columns[kind] = _round(found.mean[at])
        if kind == "ffn":
            columns |= {"low": _round(found.low[at]), "high": _round(found.high[at])}
    return columns | {"loss": _round(summary.loss_of_type[shown])}


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
