"""Figure A: which tokens go through zero, copy and constant experts."""

import statistics
from typing import TYPE_CHECKING

from moepp.analyze import token_types
from moepp.config import ExpertType

from . import paper
from .experiment import Experiment
from .lab import Lab
from .outcomes import above
from .paired import interval
from .result import Claim, Result, Table
from .routed import held_out, route
from .text import said
from .variants import MOEPP
from .words import CLASSES, by_class, code, contrast, counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: tuple[ExpertType, ...] = ("zero", "copy", "constant")
_CLAIMED: dict[ExpertType, tuple[str, ...]] = {
    "zero": ("single letter", "white space", "punctuation"),
    "copy": ("word fragment",),
    "constant": ("word fragment", "whole word", "keyword"),
}
_OFTEN = 20
_SHOWN = 10


def result(lab: Lab) -> Result:
    """By class of token, and the types that go through each kind most."""
    tables = route(lab, MOEPP, held_out(lab))
    first = next(iter(tables.values()))
    found = {seed: {kind: by_class(table, kind) for kind in KINDS} for seed, table in tables.items()}
    rows = []
    for name, count in counts(first).items():
        cells = []
        for kind in KINDS:
            values = [by_kind[kind][name] for by_kind in found.values()]
            cells.append(f"{statistics.fmean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})")
        rows.append([name, f"{count:,}", *cells])
    measured = Table(
        "Measured: experts per token and layer",
        ["", "tokens", *KINDS],
        rows,
        "Mean (by seed). There are two constant experts, and one each of the others.",
    )
    published = Table("The paper: what goes through each most", ["", "tokens"], [[k, paper.FIGURE_A[k]] for k in KINDS])
    types = {kind: token_types(first, kind, min_count=_OFTEN) for kind in KINDS}
    most = Table(
        "Measured: the types that go through each most",
        ["", *KINDS],
        [
            [f"{place + 1}", *(_cell(types[kind].text, types[kind].mean.tolist(), place) for kind in KINDS)]
            for place in range(min(_SHOWN, len(types["zero"].text)))
        ],
        f"First seed's model; types of at least {_OFTEN} occurrences; ␣ is a space.",
    )
    claims = []
    present = counts(first)
    for kind, ours in _CLAIMED.items():
        claimed = [name for name in ours if name in present]
        rest = [name for name in present if name not in ours]
        difference = interval(list(contrast(tables, kind, claimed, rest).values()))
        claims.append(
            Claim(
                f"The {kind} experts take more of {', '.join(claimed)} than of other tokens.",
                above(difference),
                f"Experts per token and layer: {said(difference)}.",
            )
        )
    limits = [
        f"{first.num_tokens:,} tokens; the paper shows examples, whose classes are ours. Which tokens a kind of expert "
        "comes to take is free to differ by seed, and an interval over seeds asks for more than one model shows."
    ]
    return Result(
        tables=[published, measured, most], claims=claims, limits=limits, data={"classes": found, "counts": present}
    )


def _cell(texts: tuple[str, ...], means: list[float], place: int) -> str:
    return f"{code(texts[place])} ({means[place]:.2f})"


def draw(found: Result, figure: "Figure") -> None:
    """A panel a kind of expert; a row a class of token."""
    from moepp.analyze.plots import TYPE_COLOURS

    names = [name for name in CLASSES if name in found.data["counts"]]
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        for place, name in enumerate(names):
            values = [by_kind[kind][name] for by_kind in found.data["classes"].values()]
            strong = name in _CLAIMED[kind]
            axes.plot(
                values,
                [place] * len(values),
                "o",
                color=TYPE_COLOURS[kind],
                markerfacecolor=TYPE_COLOURS[kind] if strong else "white",
            )
        axes.set_title(f"{kind} experts", fontsize=9)
        axes.set_xlabel("experts per token and layer", fontsize=8)
        axes.set_xlim(left=0)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].invert_yaxis()
    figure.supxlabel("a point a seed; filled where the paper sees the most", fontsize=8)


EXPERIMENT = Experiment(
    name="figure_a",
    title="Figure A: tokens that need no computation",
    variants=[MOEPP],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
