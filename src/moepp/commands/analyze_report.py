"""The numbers of ``moepp analyze``: all of them as JSON, the most telling as a table."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..analyze import (
    RoutingTable,
    by_position,
    dropped,
    expert_load,
    experts_per_token,
    imbalance,
    layer_correlation,
    load_aim,
    loss_by_experts,
    router_entropy,
    score_density,
    token_types,
)
from ..config import EXPERT_TYPES, ExpertType

MIN_COUNT = 10


def analysis(table: RoutingTable) -> dict[str, Any]:
    """What every function of the table gives, for JSON: arrays as lists, null for what cannot be known."""
    kinds = _kinds(table)
    found = {
        "facts": asdict(table.facts),
        "layout": asdict(table.layout),
        "tokens": table.num_tokens,
        "documents": len(table.documents),
        "loss": mean_loss(table),
        "load_aim": load_aim(table.layout, table.facts.tau),
        "expert_load": {by: asdict(expert_load(table, by)) for by in ("all", "source")},
        "experts_per_token": {
            kind: {by: asdict(experts_per_token(table, kind, by)) for by in ("all", "source")} for kind in kinds
        },
        "token_types": {kind: asdict(token_types(table, kind, min_count=MIN_COUNT)) for kind in kinds},
        "imbalance": asdict(imbalance(table)),
        "dropped": asdict(dropped(table)),
        "score_density": asdict(score_density(table)),
        "router_entropy": asdict(router_entropy(table)),
        "layer_correlation": asdict(layer_correlation(table)),
        "loss_by_experts": asdict(loss_by_experts(table)),
        "by_position": asdict(by_position(table)),
    }
    return _plain(found)


def mean_loss(table: RoutingTable) -> float:
    """Nats per predicted token; NaN where none was predicted."""
    predicted = table.loss[~np.isnan(table.loss)]
    return float(predicted.mean(dtype=np.float64)) if len(predicted) else math.nan


def print_summary(tables: Mapping[str, RoutingTable], console: Console) -> None:
    """A column for each model."""
    columns = {name: _column(table) for name, table in tables.items()}
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column()
    for name in columns:
        shown.add_column(name, justify="right", overflow="fold")
    for row in rows:
        shown.add_row(row, *(column.get(row, "") for column in columns.values()))
    console.print(shown)


def _column(table: RoutingTable) -> dict[str, str]:
    by_source = experts_per_token(table, by="source")
    uneven, lost = imbalance(table), dropped(table)
    entropy = router_entropy(table)
    aim = table.top_k * load_aim(table.layout, table.facts.tau)[: table.layout.ffn].sum()
    return {
        "tokens": f"{table.num_tokens:,}",
        "  seen at once": f"{table.facts.window:,}",
        "loss, nats per token": _number(mean_loss(table)),
        "FFN experts per token": _number(experts_per_token(table).mean[0]),
        "  aimed at": _number(aim),
        **{
            f"  {source}": _number(mean)
            for source, mean in zip(by_source.groups, by_source.mean.tolist(), strict=True)
            if len(by_source.groups) > 1
        },
        **{f"{kind} experts per token": _number(experts_per_token(table, kind).mean[0]) for kind in _kinds(table)[1:]},
        "busiest FFN expert, × mean": _number(uneven.ffn_max.mean()),
        "busiest expert, × its aim": _number(uneven.all_max.mean()),
        "router entropy, of log E": _number(entropy.share.mean()),
        "dropped": f"{100 * lost.total:.1f} %",
    }


def _kinds(table: RoutingTable) -> list[ExpertType]:
    """Those that the model has; FFN experts, the first, it always has."""
    return [kind for kind in EXPERT_TYPES if table.layout.count(kind)]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
