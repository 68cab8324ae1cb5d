"""Pairs of models, seed by seed: the tables and the drawing of sweeps."""

import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .compare import draw_differences
from .lab import Lab
from .paired import Paired, paired
from .record import Record
from .result import Result, Table
from .text import nats
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
    unit = _mean(lab, flops_over, lambda one: one.expert_flops)
    rows, data = [], {}
    for variant in models(pairs):
        records = lab.records(variant)
        some = next(iter(records.values()))
        by_layer = [share for one in records.values() for share in one.ffn_share]
        flops = _mean(lab, variant, lambda one: one.expert_flops) / unit
        imbalance = _mean(lab, variant, lambda one: one.curve[-1]["load_imbalance"])
        rows.append(
            [
                variant.name,
                f"{lab.mean_loss(variant):.4f}",
                *(f"{_mean(lab, variant, lambda one, s=s: one.bits_per_byte[s]):.3f}" for s in some.source_loss),
                f"{some.ffn_share_target:.1%}",
                f"{statistics.fmean(by_layer):.1%} ({min(by_layer):.0%} to {max(by_layer):.0%})",
                f"{imbalance:.2f}",
                f"{flops:.2f}",
                f"{some.parameters / 1e6:.2f}",
            ]
        )
        data[variant.name] = {
            "loss": lab.losses(variant),
            "bits_per_byte": {seed: one.bits_per_byte for seed, one in records.items()},
            "ffn_share": shares(lab, variant),
            "ffn_share_target": some.ffn_share_target,
            "load_imbalance": imbalance,
            "expert_flops": flops,
            "parameters": some.parameters,
        }
    sources = list(next(iter(lab.records(flops_over).values())).source_loss)
    head = ["", "validation loss", *(f"{source}, bits per byte" for source in sources), "FFN share aimed at"]
    head += ["reached (layers)", "load, max/mean", "expert FLOPs", "parameters, millions"]
    note = (
        "Means over seeds. Loss: nats per token. FFN share: of the choices on held-out text. Load: of the busiest FFN "
        "expert over the mean, at the end of training, in the worst layer. Expert FLOPs: of training, over those of "
        f"{flops_over.name}."
    )
    differences = {_label(pair): lab.difference(*pair) for pair in pairs}
    return Compared(
        [
            Table("Measured", head, rows, note),
            Table(
                "Differences of the validation losses",
                ["", "nats per token, 95 %", "by seed"],
                [
                    [label, nats(found), ", ".join(f"{value:+.4f}" for value in found.values)]
                    for label, found in differences.items()
                ],
                "Same seed, same samples, same initial weights where both have them; negative: the first is better.",
            ),
        ],
        {
            "models": data,
            "differences": {label: found.values for label, found in differences.items()},
        },
    )


def shares(lab: Lab, variant: Variant) -> dict[int, float]:
    """The FFN experts' share of the choices on held-out text, averaged over layers, by seed."""
    return {seed: statistics.fmean(one.ffn_share) for seed, one in lab.records(variant).items()}


def share_difference(lab: Lab, ours: Variant, theirs: Variant) -> Paired:
    """Of the FFN shares reached."""
    return paired(shares(lab, ours), shares(lab, theirs))


def length(lab: Lab, variant: Variant) -> str:
    """A limit of every comparison: how little was trained."""
    run = lab.run(variant, lab.scale.seeds[0]).recipe()
    tokens = run.training["max_steps"] * run.samples_per_step * run.data.sequence_length
    return (
        f"{run.training['max_steps']:,} steps, {tokens:,} tokens, {len(lab.scale.seeds)} seeds: what differs here may "
        "vanish, or turn round, in a run of the paper's length (100B tokens)."
    )


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


def _label(pair: Pair) -> str:
    return " − ".join(one.name for one in pair)


def _mean(lab: Lab, variant: Variant, of: Callable[[Record], float]) -> float:
    return statistics.fmean(map(of, lab.records(variant).values()))
