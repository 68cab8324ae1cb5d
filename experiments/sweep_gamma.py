"""Capacity (Eq. 8): what it drops of a young router's assignments, and what that costs, for MoE++ and for vanilla."""

import statistics
from typing import TYPE_CHECKING

from moepp.config import EXPERT_TYPES
from moepp.train import read_metrics

from .compare import setup
from .experiment import Experiment
from .lab import Lab
from .outcomes import within
from .paired import interval
from .result import Claim, Result, Table
from .sweep import compare_pairs, contest, models, panels
from .text import level
from .variants import GAMMAS, MOEPP, VANILLA, Variant, as_published, with_gamma

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE, TWIN = MOEPP.short(), VANILLA.short()
PAIRS = [
    *((with_gamma(gamma), BASE) for gamma in GAMMAS),
    (with_gamma(1.1, VANILLA), TWIN),
    (as_published(MOEPP), BASE),
    (as_published(VANILLA), TWIN),
]
LIMITED = [ours for ours, _ in PAIRS]
PROBE = (0.15, 0.40)
"""An earlier probe of one seed: MoE++ with the paper's values dropped this much at γ = 1.1."""


def result(lab: Lab) -> Result:
    """Losses, and the assignments dropped while training."""
    found = compare_pairs(lab, PAIRS, flops_over=TWIN)
    lost = {one.name: _dropped(lab, one) for one in LIMITED}
    rows = []
    for one in LIMITED:
        records = lab.records(one).values()
        curve = _mean_curve(lost[one.name])
        rows.append(
            [
                one.name,
                f"{statistics.fmean(record.dropped for record in records):.1%}",
                f"{statistics.fmean(curve.values()):.1%}",
                f"{next(iter(curve.values())):.1%}",
                f"{list(curve.values())[-1]:.1%}",
            ]
        )
    head = ["", "FFN experts' assignments", "all assignments", "… at the beginning", "… at the end"]
    note = (
        "Means over seeds and layers, of all training steps; beginning and end: the first and the last logging window. "
        "All: each type's share of the choices times what it lost."
    )
    tables = [*found.tables, Table("Dropped by capacity in training", head, rows, note)]
    tight, wide, twin = with_gamma(1.1), with_gamma(2.0), with_gamma(1.1, VANILLA)
    claims = [
        probe(as_published(MOEPP), lost, "with the paper's values, as in an earlier probe of one seed"),
        probe(tight, lost, "with the recipe's values"),
        *(
            contest(lab, ours, base, f"{ours.name} costs loss against no capacity.", lower=False)
            for ours, base in ((tight, BASE), (wide, BASE), (twin, TWIN))
        ),
    ]
    limits = [
        setup(lab, BASE),
        "Capacity acts in training only: all validation losses are without it. In training it is taken over a "
        "micro-batch; larger ones are more even, and drop less.",
    ]
    data = found.data | {"dropped": lost}
    return Result(tables=tables, claims=claims, limits=limits, data=data)


def _dropped(lab: Lab, variant: Variant) -> dict[int, dict[int, float]]:
    """The share of all assignments, averaged over layers, by seed and logging step."""
    return {
        seed: {
            entry["step"]: sum(
                entry[f"share/{kind}"] * entry[f"dropped/{kind}"] for kind in EXPERT_TYPES if f"share/{kind}" in entry
            )
            for entry in read_metrics(lab.pool.path(lab.run(variant, seed)))
            if "lm_loss" in entry
        }
        for seed in lab.records(variant)
    }


def _mean_curve(by_seed: dict[int, dict[int, float]]) -> dict[int, float]:
    curves = list(by_seed.values())
    return {step: statistics.fmean(curve[step] for curve in curves) for step in curves[0]}


def probe(variant: Variant, lost: dict[str, dict[int, dict[int, float]]], setting: str) -> Claim:
    """Whether models of several seeds lost as much as an earlier probe's one."""
    means = [statistics.fmean(curve.values()) for curve in lost[variant.name].values()]
    windows = [share for curve in lost[variant.name].values() for share in curve.values()]
    found = interval(means)
    return Claim(
        f"γ = 1.1 drops 15 to 40 % of a young MoE++ router's assignments, {setting}.",
        within(found, *PROBE),
        f"Over training {level(found, '%', times=100, digits=1)}, by seed "
        f"{', '.join(f'{mean:.1%}' for mean in means)}; in a logging window "
        f"{min(windows):.1%} to {max(windows):.1%}.",
    )


def draw(found: Result, figure: "Figure") -> None:
    """What is dropped, over training, above the differences."""
    from .plots import COLOURS

    (axes,) = panels(found, figure, 2.6)
    styles = ["-", "--", "-", "--", ":"]
    for (name, by_seed), colour, style in zip(found.data["dropped"].items(), COLOURS, styles, strict=False):
        curve = {int(step): 100 * share for step, share in _mean_curve(by_seed).items()}
        axes.plot(list(curve), list(curve.values()), style, color=colour, label=name)
    axes.set_xlabel("training steps")
    axes.set_ylabel("assignments dropped (%)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


EXPERIMENT = Experiment(
    name="sweep_gamma",
    title="Sweep of γ, and capacity on and off",
    variants=models(PAIRS),
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
