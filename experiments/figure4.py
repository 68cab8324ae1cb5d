"""Figure 4: expert load per layer by task and source, and FFN experts per token."""

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moepp.analyze import RoutingTable, expert_load, experts_per_token

from . import paper
from .experiment import Experiment
from .lab import Lab
from .loads import apart, distances
from .outcomes import above
from .paired import interval
from .result import Claim, Result, Table
from .routed import held_out, prompts, route
from .text import said
from .variants import MOEPP

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def result(lab: Lab) -> Result:
    """The scale's sources and the prompts of its evaluation tasks instead of the paper's tasks."""
    tables = route(lab, MOEPP, [*held_out(lab), *prompts(lab)])
    loads = {seed: expert_load(table, "source") for seed, table in tables.items()}
    overall = {seed: expert_load(table).share[0] for seed, table in tables.items()}
    per_token = {}
    for seed, table in tables.items():
        found = experts_per_token(table, "ffn", "source")
        per_token[seed] = dict(zip(found.groups, found.mean.tolist(), strict=True))
    first = next(iter(tables.values()))
    sizes = dict(zip(first.sources, np.bincount(first.source).tolist(), strict=True))
    rows = []
    for index, group in enumerate(first.sources):
        values = [by_group[group] for by_group in per_token.values()]
        moved = [np.abs(load.share[index] - overall[seed]).sum(axis=-1).mean() / 2 for seed, load in loads.items()]
        rows.append(
            [
                group,
                f"{sizes[group]:,}",
                f"{statistics.fmean(values):.3f}",
                ", ".join(f"{value:.3f}" for value in values),
                f"{statistics.fmean(moved):.1%}",
            ]
        )
    head = ["", "tokens", "FFN experts per token", "by seed", "load elsewhere than overall"]
    note = (
        "Averaged over layers. Load elsewhere: the share of choices to be moved to get the load of all text together."
    )
    published = Table(
        "The paper: FFN experts per token, least and most of its tasks",
        ["", "FFN experts per token"],
        [[task, f"{value:.3f}"] for task, value in paper.FIGURE_4.items()],
    )
    spread = interval(list(spreads(per_token).values()))
    widest = [max(one.values()) - min(one.values()) for one in per_token.values()]
    between = {seed: distances(_halves(table)) for seed, table in tables.items()}
    elsewhere = interval([apart(found, list(found)) for found in between.values()])
    claims = [
        Claim(
            "Expert load differs by task and source.",
            above(elsewhere),
            "Share of a text's choices that would have to move to get another text's load, less that between halves of "
            f"one text, of different documents: {said(elsewhere, 'points', times=100, digits=2)}.",
        ),
        Claim(
            "FFN experts per token differ by task and source, and the same ones get more in every seed's model.",
            above(spread),
            "Where the other seeds' models compute most less where they compute least, in FFN experts per token: "
            f"{said(spread)}. Most less least of one model: {', '.join(f'{value:.3f}' for value in widest)}; the "
            f"paper's tasks: {paper.FIGURE_4['HellaSwag'] - paper.FIGURE_4['SciQ']:.3f}.",
        ),
    ]
    limits = [
        "The tasks ask about held-out code of the Python library; they resemble the sources, and each other, more than "
        "the paper's tasks do. Their prompts are counted, without answers.",
        "Which expert is which differs by seed, so the drawing shows the first seed's model.",
    ]
    data = {
        "ffn_per_token": per_token,
        "distances": between,
        "load": dict(zip(first.sources, next(iter(loads.values())).share.tolist(), strict=True)),
        "experts": _names(first.layout.ffn, first.layout.constant, first.layout.copy, first.layout.zero),
    }
    return Result(tables=[published, Table("Measured", head, rows, note)], claims=claims, limits=limits, data=data)


def spreads(per_token: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
    """In each seed's model, the text on which the *other* models compute most less the one on which they compute least.

    Chosen on its own numbers, the difference would be positive by construction.
    """
    found = {}
    for seed, values in per_token.items():
        others = [by_group for other, by_group in per_token.items() if other != seed]
        mean = {group: statistics.fmean(one[group] for one in others) for group in values} if others else values
        found[seed] = values[max(mean, key=mean.__getitem__)] - values[min(mean, key=mean.__getitem__)]
    return found


def _halves(table: RoutingTable) -> dict[str, list[Tensor]]:
    """Of each text with two documents or more, the load in every other document and in the rest."""
    counts, documents = Counter(), []
    for document in table.documents:
        documents.append(replace(document, source=f"{counts[document.source] % 2} {document.source}"))
        counts[document.source] += 1
    load = expert_load(replace(table, documents=tuple(documents)), "source")
    shares = dict(zip(load.groups, map(torch.from_numpy, load.share), strict=True))
    return {text: [shares[f"{half} {text}"] for half in (0, 1)] for text, count in counts.items() if count > 1}


def _names(ffn: int, constant: int, copy: int, zero: int) -> list[str]:
    return [str(index) for index in range(ffn)] + ["const"] * constant + ["copy"] * copy + ["zero"] * zero


def draw(found: Result, figure: "Figure") -> None:
    """A heat map a text: layers by experts."""
    loads = found.data["load"]
    names, columns = found.data["experts"], 3
    rows = -(-len(loads) // columns)
    figure.set_size_inches(7.2, 0.6 + 1.5 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    highest = 100 * max(max(layer) for load in loads.values() for layer in load)
    image = None
    for axes, (group, load) in zip(grid.flat, loads.items(), strict=False):
        percent = 100 * np.array(load)
        image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=highest, aspect="auto")
        seeds = found.data["ffn_per_token"].values()
        axes.set_title(f"{group}: {statistics.fmean(one[group] for one in seeds):.2f} FFN/token", fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(load)), [str(layer) for layer in range(len(load))], fontsize=7)
    for axes in grid.flat[len(loads) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("layer")
    for axes in grid[-1]:
        axes.set_xlabel("expert")
    if image is not None:
        figure.colorbar(image, ax=grid, label="choices (%)")


EXPERIMENT = Experiment(
    name="figure4",
    title="Figure 4: expert load by task",
    variants=[MOEPP],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
