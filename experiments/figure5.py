"""Figure 5: FFN experts per token type. Is computation spent on whole words, and saved on fragments?"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from moepp.analyze import RoutingTable, token_types
from moepp.analyze.relations import pearson, ranks

from . import paper
from .experiment import Experiment
from .lab import Lab
from .outcomes import below
from .paired import interval
from .result import Claim, Outcome, Result, Table
from .routed import held_out, route
from .text import said
from .variants import MOEPP
from .words import CLASSES, by_class, code, contrast, counts, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OFTEN = 20
"""Occurrences of a type that is shown."""
_SHOWN = 10
_SHUFFLES = 999


def result(lab: Lab) -> Result:
    """Token types and classes of token."""
    tables = route(lab, MOEPP, held_out(lab))
    first = next(iter(tables.values()))
    means = {seed: _means(table) for seed, table in tables.items()}
    agreements = correlations(list(means.values()))
    classes = {seed: by_class(table, "ffn") for seed, table in tables.items()}
    fragments = interval(list(contrast(tables, "ffn", ["word fragment"], ["whole word"]).values()))
    extremes = _extremes(tables)
    range_ = [max(one.values()) - min(one.values()) for one in means.values()]
    claims = [
        Claim(
            "Word fragments go through fewer FFN experts than whole words.",
            below(fragments),
            said(fragments, "FFN experts per token and layer"),
        ),
        Claim(
            "Token types differ, and the same ones go through more FFN experts in every seed's model.",
            beyond_chance(agreements),
            f"Rank correlation between every two seeds' models: "
            f"{', '.join(f'{one:+.3f} (by chance {most:+.3f})' for one, most in agreements)}, over "
            f"{len(next(iter(means.values()))):,} types of at least {_OFTEN} occurrences; by chance: the most of "
            f"{_SHUFFLES} orders of the types. Most less least, by seed: "
            f"{', '.join(f'{value:.2f}' for value in range_)}; the paper's: "
            f"{paper.FIGURE_5['touch'] - paper.FIGURE_5['ried']:.2f}.",
        ),
    ]
    limits = [
        f"{first.num_tokens:,} tokens of docstrings and code, which have few of the paper's nouns and many "
        "symbols. A type's interval takes its occurrences for independent, and the extremes of many types are partly "
        "chance: the other seeds' means beside them are not chosen."
    ]
    data = {"classes": classes, "extremes": extremes, "counts": counts(first)}
    return Result(
        tables=[_published(), _class_table(tables), _extreme_table(extremes)], claims=claims, limits=limits, data=data
    )


def correlations(means: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
    """The rank correlation of every two models' values of the same names, and the most that shuffled names give.

    Pairs of a few models share models, so they are no sample: each is held against its own chance.
    """
    rng, found = np.random.default_rng(0), []
    for one, other in combinations(means, 2):
        ours, theirs = ranks(np.array([*one.values()])), ranks(np.array([other[name] for name in one]))
        by_chance = max(pearson(rng.permutation(ours), theirs) for _ in range(_SHUFFLES))
        found.append((pearson(ours, theirs), by_chance))
    return found


def beyond_chance(found: Sequence[tuple[float, float]]) -> Outcome:
    """Of a claim that models agree: every pair does more than by chance, or none does."""
    more = [one > by_chance for one, by_chance in found]
    if not more or len(set(more)) > 1:
        return "unresolved"
    return "agrees" if more[0] else "disagrees"


def _means(table: RoutingTable) -> dict[str, float]:
    found = token_types(table, min_count=_OFTEN)
    return {str(token): mean for token, mean in zip(found.token.tolist(), found.mean.tolist(), strict=True)}


def _extremes(tables: Mapping[int, RoutingTable]) -> list[dict[str, Any]]:
    """The first seed's most and least expensive types, with what the other seeds' models make of them."""
    first, *others = (token_types(table, min_count=_OFTEN) for table in tables.values())
    elsewhere = [dict(zip(one.token.tolist(), one.mean.tolist(), strict=True)) for one in others]
    count = len(first.text)
    chosen = list(range(count)) if count <= 2 * _SHOWN else [*range(_SHOWN), *range(count - _SHOWN, count)]
    return [
        {
            "token": first.text[index],
            "count": int(first.count[index]),
            "mean": float(first.mean[index]),
            "low": float(first.low[index]),
            "high": float(first.high[index]),
            "others": [one[int(first.token[index])] for one in elsewhere],
        }
        for index in chosen
    ]


def _published() -> Table:
    most, least = paper.FIGURE_5["touch"], paper.FIGURE_5["ried"]
    rows = [["touch", f"{most:.2f}"], ["nouns", "1.5 to 1.7"], ["word fragments", "< 1.5"], ["ried", f"{least:.2f}"]]
    return Table("The paper: FFN experts per token, from the most to the least", ["", "FFN experts per token"], rows)


def _class_table(tables: Mapping[int, RoutingTable]) -> Table:
    first = next(iter(tables.values()))
    overall = [by_class(table, "ffn") for table in tables.values()]
    by_source = {source: [by_class(table, "ffn", source) for table in tables.values()] for source in first.sources}
    rows = []
    for name, count in counts(first).items():
        cells = [
            f"{statistics.fmean(one[name] for one in seeds):.3f}" if all(name in one for one in seeds) else ""
            for seeds in (overall, *by_source.values())
        ]
        rows.append([name, f"{count:,}", cells[0], ", ".join(f"{one[name]:.3f}" for one in overall), *cells[1:]])
    return Table(
        "Measured: FFN experts per token and layer, by class",
        ["", "tokens", "all", "by seed", *by_source],
        rows,
        "A fragment touches another token's letter; a keyword is Python's, in prose as well.",
    )


def _extreme_table(extremes: list[dict[str, Any]]) -> Table:
    rows = [
        [
            code(one["token"]),
            f"{one['count']}",
            f"{one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]",
            ", ".join(f"{value:.2f}" for value in one["others"]),
        ]
        for one in extremes
    ]
    return Table(
        "Measured: the most and the least expensive token types",
        ["", "occurrences", "FFN experts, 95 %", "other seeds"],
        rows,
        f"First seed's model; types of at least {_OFTEN} occurrences; ␣ is a space.",
    )


def draw(found: Result, figure: "Figure") -> None:
    """Classes of token, by seed; and the types at both ends."""
    from .plots import COLOURS

    figure.set_size_inches(7.2, 4.6)
    left, right = figure.subplots(1, 2)
    names = [name for name in CLASSES if name in found.data["counts"]]
    for (seed, values), colour, marker in zip(found.data["classes"].items(), COLOURS, "os^", strict=False):
        places = [place for place, name in enumerate(names) if name in values]
        left.plot([values[names[place]] for place in places], places, marker, color=colour, label=f"seed {seed}")
    left.set_yticks(range(len(names)), names, fontsize=8)
    extremes = found.data["extremes"]
    places = np.arange(len(extremes))
    for place, one in zip(places, extremes, strict=True):
        labels = ("first seed, 95 %", "other seeds") if place == 0 else (None, None)
        right.plot([one["low"], one["high"]], [place] * 2, "-|", color=COLOURS[0], linewidth=3, label=labels[0])
        right.plot(one["others"], [place] * len(one["others"]), "x", color=COLOURS[1], markersize=4, label=labels[1])
    right.set_yticks(places, [shown(one["token"]) for one in extremes], fontsize=7, parse_math=False)
    for axes in (left, right):
        axes.invert_yaxis()
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0, fontsize=8, handletextpad=0.3)
        axes.set_xlabel("FFN experts per token and layer")


EXPERIMENT = Experiment(
    name="figure5",
    title="Figure 5: FFN experts by token type",
    variants=[MOEPP],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
