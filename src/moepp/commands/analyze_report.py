"""The numbers of ``moepp analyze``: all of them as JSON, the most telling as a table."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..analyze import Summary, load_aim
from ..analyze.numbers import numbers
from ..config import EXPERT_TYPES, ExpertType

MIN_COUNT = 10


def analysis(summary: Summary) -> dict[str, Any]:
    """What every function of the table gives, for JSON: arrays as lists, null for what cannot be known."""
    table, kinds = summary.sample, _kinds(summary)
    found = {
        "facts": asdict(table.facts),
        "layout": asdict(table.layout),
        "tokens": summary.num_tokens,
        "documents": len(table.documents),
        "loss": summary.loss,
        "load_aim": load_aim(table.layout, table.facts.tau),
        "expert_load": {"all": asdict(summary.load), "source": asdict(summary.load_by_source)},
        "experts_per_token": {
            kind: {"all": asdict(summary.per_token[kind]), "source": asdict(summary.per_token_by_source[kind])}
            for kind in kinds
        },
        "token_types": {kind: asdict(summary.types[kind].at_least(MIN_COUNT)) for kind in kinds},
        "imbalance": asdict(summary.imbalance),
        "dropped": asdict(summary.dropped),
        "score_density": asdict(summary.scores),
        "router_entropy": asdict(summary.entropy),
        "layer_correlation": asdict(summary.correlation),
        "loss_by_experts": asdict(summary.losses),
        "by_position": asdict(summary.positions),
    }
    return _plain(found)


def print_summary(summaries: Mapping[str, Summary], console: Console) -> None:
    """A column for each model."""
    columns = {name: numbers(summary) for name, summary in summaries.items()}
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column()
    for name in columns:
        shown.add_column(name, justify="right", overflow="fold")
    for row in rows:
        shown.add_row(row, *(column.get(row, "") for column in columns.values()))
    console.print(shown)


def _kinds(summary: Summary) -> list[ExpertType]:
    """Those that the model has; FFN experts, the first, it always has."""
    return [kind for kind in EXPERT_TYPES if summary.sample.layout.count(kind)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
