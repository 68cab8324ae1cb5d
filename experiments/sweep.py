"""Pairs of models, seed by seed: the tables and the drawing of sweeps."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .compare import compared, draw_differences
from .lab import Lab
from .outcomes import above, below
from .result import Claim, Result, Table
from .text import nats, said
from .variants import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WRAP = 36  # characters of a row's name

Pair = tuple[Variant, Variant]
"""Whose loss, less whose."""


@dataclass(frozen=True)
class Compared:
    """What is known of some pairs of models."""

    tables: list[Table]
    data: dict[str, Any]


def models(pairs: Sequence[Pair]) -> list[Variant]:
    """All of the pairs, each once, in their order; what stands on the right first."""
    return list(dict.fromkeys(one for pair in pairs for one in reversed(pair)))


def compare_pairs(lab: Lab, pairs: Sequence[Pair], *, flops_over: Variant) -> Compared:
    """Every model's numbers, and every pair's difference of the final validation losses."""
    tables, data = compared(lab, {variant.name: variant for variant in models(pairs)}, unit=flops_over)
    differences = {" − ".join(one.name for one in pair): lab.difference(*pair) for pair in pairs}
    rows = [
        [label, said(found), ", ".join(f"{value:+.4f}" for value in found.values)]
        for label, found in differences.items()
    ]
    note = "Same seed, same samples, same initial weights where both have them; negative: the first is better."
    tables.append(Table("Differences of the validation losses", ["", "nats per token, 95 %", "by seed"], rows, note))
    return Compared(
        tables, {"models": data, "differences": {label: found.values for label, found in differences.items()}}
    )


def contest(lab: Lab, ours: Variant, theirs: Variant, text: str, *, lower: bool = True, more: str = "") -> Claim:
    """A claim on the sign of a pair's difference.

    Args:
        lower: what is claimed of our loss; higher otherwise.
        more: evidence besides the difference.
    """
    difference = lab.difference(ours, theirs)
    return Claim(text, (below if lower else above)(difference), f"{nats(difference)}. {more}".rstrip())


def draw(found: Result, figure: "Figure") -> None:
    """Draws the differences by seed with their intervals, above the FFN share that each model reached."""
    panels(found, figure)


def panels(found: Result, figure: "Figure", *before: float) -> "list[Axes]":
    """Draws into the lower two of a column of panels.

    Args:
        before: the heights of those above, which stay empty, in inches.

    Returns:
        Those above.
    """
    from .plots import COLOURS

    differences, data = found.data["differences"], found.data["models"]
    heights = [*before, *(0.85 + 0.34 * len(rows) for rows in (differences, data))]
    figure.set_size_inches(7.2, sum(heights))
    *above, upper, lower = figure.subplots(len(heights), 1, height_ratios=heights)
    rows = {textwrap.fill(label, _WRAP): values for label, values in differences.items()}
    draw_differences(upper, rows, colour=COLOURS[0])
    upper.set_xlabel("validation loss, first − second (nats per token)")
    _draw_shares(lower, data)
    for axes in (upper, lower):
        axes.tick_params("y", labelsize=8)
    return above


def _draw_shares(axes: "Axes", data: dict[str, Any]) -> None:
    from .plots import COLOURS

    for place, one in enumerate(data.values()):
        aim, seeds = ("aimed at", "reached, by seed") if place == 0 else (None, None)
        reached = [100 * share for share in one["ffn_share"].values()]
        axes.plot(100 * one["ffn_share_target"], place, "|", color="#666666", markersize=16, mew=2, label=aim)
        axes.plot(reached, [place] * len(reached), "s", color=COLOURS[1], markersize=4, label=seeds)
    axes.set_xlabel("choices that go to FFN experts (%)")
    axes.set_yticks(range(len(data)), [textwrap.fill(name, _WRAP) for name in data])
    axes.set_ylim(len(data) - 0.5, -0.5)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
