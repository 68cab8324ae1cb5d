"""Figure 6: the routing scores' density with and without gating residuals."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from moepp.analyze import score_density
from moepp.analyze.relations import ScoreDensity

from .experiment import Experiment
from .lab import Lab
from .outcomes import below, within
from .paired import paired
from .result import Claim, Result, Table
from .routed import held_out, route
from .text import level, said
from .variants import MOEPP, NO_RESIDUAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHOICES = ("top-1", "top-2")
SAME = 0.05
"""Means within this share of each other are called the same."""


def result(lab: Lab) -> Result:
    """Mean and variance of the scores of both choices, over all tokens and layers."""
    texts = held_out(lab)
    found = {
        variant.name: {seed: score_density(table) for seed, table in route(lab, variant, texts).items()}
        for variant in (MOEPP, NO_RESIDUAL)
    }
    ours, theirs = found.values()
    rows, claims = [], []
    for choice, name in enumerate(CHOICES):
        for what in ("mean", "variance"):
            values = [
                {seed: float(getattr(one, what)[choice]) for seed, one in each.items()} for each in (ours, theirs)
            ]
            difference = paired(*values)
            cells = [", ".join(f"{value:.4f}" for value in each.values()) for each in values]
            rows.append([f"{name}, {what}", *cells, said(difference)])
            if what == "variance":
                text = f"Gating residuals lower the variance of the {name} scores."
                claims.append(Claim(text, below(difference), said(difference)))
            else:
                usual = sum(values[1].values()) / len(values[1])
                text = f"Gating residuals leave the mean of the {name} scores as it is."
                margin = SAME * usual
                evidence = f"{level(difference, sign='+')}; the same is within ± {margin:.4f}, {SAME:.0%} of the mean."
                claims.append(Claim(text, within(difference, -margin, margin), evidence))
    tables = [
        Table(
            "The paper",
            ["", "with gating residuals"],
            [["mean of top-1 and top-2 scores", "the same"], ["variance", "lower"]],
        ),
        Table(
            "Measured",
            ["", "with, by seed", "without, by seed", "with − without, 95 %"],
            rows,
            "A score is the router's probability of the chosen expert, over all experts, before the weights are "
            "divided by their sum; over all tokens and layers.",
        ),
        _layers(ours, theirs),
    ]
    limits = [
        "The first layer has no residual, but learns beside layers that have one. The residuals started at 0 "
        "(W^g = 0) and had a short run to grow."
    ]
    data = {
        "edges": next(iter(ours.values())).edges.tolist(),
        "density": {name: {seed: one.overall.tolist() for seed, one in each.items()} for name, each in found.items()},
    }
    return Result(tables=tables, claims=claims, limits=limits, data=data)


def _layers(ours: Mapping[int, ScoreDensity], theirs: Mapping[int, ScoreDensity]) -> Table:
    rows = []
    for layer in range(len(next(iter(ours.values())).layer_mean)):
        row = [f"{layer}"]
        for each in (ours, theirs):
            for what in ("layer_mean", "layer_variance"):
                value = np.mean([getattr(one, what)[layer] for one in each.values()], axis=0)
                row.append(f"{value[0]:.4f}, {value[1]:.4f}")
        rows.append(row)
    head = ["layer", "with: mean", "variance", "without: mean", "variance"]
    return Table("Measured, by layer: top-1, top-2", head, rows, "Means over seeds.")


def draw(found: Result, figure: "Figure") -> None:
    """Densities of both choices' scores: all seeds, and their mean."""
    from .plots import COLOURS

    edges = np.array(found.data["edges"])
    middles = (edges[1:] + edges[:-1]) / 2
    panels = figure.subplots(1, len(CHOICES))
    styles: tuple[Literal["-", "--"], ...] = ("-", "--")
    for choice, (axes, name) in enumerate(zip(panels, CHOICES, strict=True)):
        used = 0.0
        for (model, by_seed), colour, style in zip(found.data["density"].items(), COLOURS, styles, strict=False):
            lines = np.array([one[choice] for one in by_seed.values()])
            for line in lines:
                axes.plot(middles, line, style, color=colour, linewidth=0.6, alpha=0.5)
            axes.plot(middles, lines.mean(axis=0), style, color=colour, linewidth=2, label=model)
            used = max(used, float(middles[lines.max(axis=0) > 0.02].max()))
        axes.set_xlim(0, min(1.0, used + 0.05))
        axes.set_ylim(bottom=0)
        axes.set_title(f"{name} scores", fontsize=9)
        axes.set_xlabel("score (probability of the chosen expert)")
    panels[0].set_ylabel("density")
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1.08), ncols=2, borderaxespad=0, fontsize=8)


EXPERIMENT = Experiment(
    name="figure6",
    title="Figure 6: routing scores with and without gating residuals",
    variants=[MOEPP, NO_RESIDUAL],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
