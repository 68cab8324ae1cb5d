"""The tables of ``moepp eval``: tasks side by side, as in the paper's Tables 3 and 4."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from ..evaluate import Evaluation, Score, TextLoss
from ..format import binary

_NOTE = "* no more than two standard errors above chance; the second average leaves it out"
_PADDING = 2
_NAME = 8


def print_scores(model: str, evaluation: Evaluation, console: Console) -> None:
    """A column for each task and two averages, in as many tables one below the other as the width asks for."""
    if not evaluation.scores:
        return
    columns = [_column(score, evaluation) for score in evaluation.scores] + _averages(evaluation)
    names = [name for name in columns[0] if any(column[name] for column in columns)]
    first = max(map(cell_len, names)) + _PADDING
    widths = [max(map(cell_len, column.values())) + _PADDING for column in columns]
    tables = math.ceil(sum(widths) / max(console.width - first - _PADDING, 1))
    while tables < len(columns) and first + max(map(sum, _split(widths, tables))) + _PADDING > console.width:
        tables += 1
    for number, group in enumerate(_split(columns, tables)):
        title = f"{model}, %" if number == 0 else None
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column()
        for column in group:
            table.add_column(column[""], justify="right", no_wrap=True)
        for name in names[1:]:
            table.add_row(name, *(column[name] for column in group), style="bold" if name == "score" else "")
        console.print(table)
    if any(score.near_chance for score in evaluation.scores):
        console.print(_NOTE, style="dim", highlight=False)
    cut = [f"{score.label} {score.requests_cut}" for score in evaluation.scores if score.requests_cut]
    if cut:
        console.print(f"contexts cut to fit the model: {', '.join(cut)}", style="dim", highlight=False)


def print_skipped(evaluation: Evaluation, console: Console) -> None:
    """One line for each task that could not be evaluated."""
    for skipped in evaluation.skipped:
        console.print("skipped ", style="yellow", end="")
        console.print(f"{skipped.label}: {skipped.reason}", markup=False, highlight=False, soft_wrap=True)


def print_text_losses(losses: Mapping[str, TextLoss], console: Console) -> None:
    """One row for each source of text."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    widest = max(map(cell_len, losses), default=0)
    table.add_column("text", overflow="fold", min_width=min(widest, _NAME))  # only a long pattern is broken
    for name in ("docs", "bytes", "tokens", "nats/token", "perplexity", "bits/byte"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, loss in losses.items():
        numbers = (f"{loss.loss:.4f}", f"{loss.perplexity:.2f}", f"{loss.bits_per_byte:.4f}")
        table.add_row(name, f"{loss.documents:,}", binary(loss.bytes), f"{loss.tokens:,}", *numbers)
    console.print(table)


def _column(score: Score, evaluation: Evaluation) -> dict[str, str]:
    """A task's cells by the name of their row; its head stands at ``""``."""
    show = _share if score.is_accuracy else _plain
    kinds = dict.fromkeys(kind for one in evaluation.scores for kind in one.baselines)
    return {
        "": score.label,
        "shots": str(score.shots),
        "score": show(score.score) + ("*" if score.is_accuracy and score.near_chance else ""),
        "± standard error": "" if score.standard_error is None else show(score.standard_error),
        "chance": show(score.chance) if score.is_accuracy else "",
        **{kind: show(score.baselines[kind]) if kind in score.baselines else "" for kind in kinds},
        "MoE++ 7B in the paper": "" if score.published is None else f"{score.published:.1f}",
        "FFN experts per token": f"{score.ffn_per_token:.3f}",
        "items": f"{score.items:,}",
        "metric": score.metric.replace("exact_match", "match"),
    }


def _averages(evaluation: Evaluation) -> list[dict[str, str]]:
    average, without = evaluation.average(), evaluation.average_above_chance()
    if average is None:
        return []
    empty = dict.fromkeys(_column(evaluation.scores[0], evaluation), "")
    error = evaluation.average_standard_error()
    published = [score.published for score in evaluation.scores if score.published is not None]
    every = len(published) == len(evaluation.scores)
    both = empty | {
        "": "average",
        "score": _share(average),
        "± standard error": "" if error is None else _share(error),
        "MoE++ 7B in the paper": f"{sum(published) / len(published):.1f}" if every else "",
    }
    return [both, empty | {"": "above chance", "score": "–" if without is None else _share(without)}]


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _split(items: Sequence[Any], parts: int) -> list[Any]:
    """In order, into so many parts of about equal length."""
    bounds = [round(part * len(items) / parts) for part in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(bounds)]
