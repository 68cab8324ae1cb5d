"""Table 5: which zero-computation experts pay, alone and together."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from . import paper
from .compare import compared, draw_differences, setup
from .experiment import Experiment
from .lab import Lab
from .outcomes import all_of, below
from .paired import Paired, interval, paired
from .result import Claim, Result
from .text import nats, said
from .variants import MOEPP, VANILLA, VANILLA_RESIDUAL, Variant, with_types

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE, ALL, WITH_RESIDUAL = "none", "all", "none, with gating residuals"


def _variant(name: str) -> Variant:
    types = ["zero", "copy", "constant"] if name == ALL else name.split(" + ")
    return with_types(constant="constant" in types, copy="copy" in types, zero="zero" in types)


COMBINATIONS = {name: _variant(name) for name in paper.TABLE_5}
ROWS = {NONE: VANILLA, WITH_RESIDUAL: VANILLA_RESIDUAL} | COMBINATIONS
PUBLISHED = paper.TABLE_5 | {WITH_RESIDUAL: paper.TABLE_6["vanilla with gating residuals"]}


def result(lab: Lab) -> Result:
    """Ours beside the paper's, each with the FLOPs that it spent."""
    tables, data = compared(lab, ROWS, [NONE, ALL], PUBLISHED)
    alone = {name: lab.difference(COMBINATIONS[name], VANILLA) for name in ("zero", "copy", "constant")}
    constant = [lab.difference(COMBINATIONS["constant"], COMBINATIONS[other]) for other in ("zero", "copy")]
    fewer = {name: lab.difference(MOEPP, variant) for name, variant in COMBINATIONS.items() if name not in (NONE, ALL)}
    flops = [data[name]["expert_flops"] for name in COMBINATIONS]
    by_flops = _correlation(flops, [data[name]["loss"] for name in COMBINATIONS])
    claims = [
        Claim(
            "Each type alone is better than no zero-computation experts.",
            all_of(map(below, alone.values())),
            "; ".join(f"{name} {nats(difference)}" for name, difference in alone.items()),
        ),
        Claim(
            "A constant expert alone is better than a zero or a copy expert alone.",
            all_of(map(below, constant)),
            "; ".join(f"− {name} {nats(found)}" for name, found in zip(("zero", "copy"), constant, strict=True)),
        ),
        Claim(
            "All three together are better than one or two of them.",
            all_of(map(below, fewer.values())),
            "; ".join(f"− {name} {nats(difference)}" for name, difference in fewer.items()),
        ),
        Claim(
            "Over the eight combinations, the loss falls with the expert FLOPs spent, whatever the types.",
            below(by_flops),
            f"Their correlation: {said(by_flops, digits=2)}.",
            origin="ours",
        ),
    ]
    limits = [
        "A type that is left out takes its experts along, in the paper's table as here: fewer zero-computation experts "
        "leave more choices to FFN experts, so rows differ in expert FLOPs as well as in types, and a lower loss may "
        "be no more than FLOPs bought it.",
        "The row without experts has no gating residuals either; the row below it has them, as all others do.",
        f"Of {2 * (len(ROWS) - 1)} intervals of 95 %, one is expected to miss by chance.",
        setup(lab),
    ]
    return Result(tables=tables, claims=claims, limits=limits, data=data)


def _correlation(flops: Sequence[float], losses: Sequence[Mapping[int, float]]) -> Paired:
    """Of FLOPs and loss over the rows, by seed; the interval is Fisher's, so that it stays within 1."""
    seeds = set.intersection(*(set(loss) for loss in losses))
    values = [statistics.correlation(flops, [loss[seed] for loss in losses]) for seed in sorted(seeds)]
    found = interval([math.atanh(value) for value in values])
    return Paired(math.tanh(found.mean), math.tanh(found.low), math.tanh(found.high), tuple(values))


def draw(found: Result, figure: "Figure") -> None:
    """Differences to vanilla, and the FLOPs that each row spends."""
    from .plots import COLOURS

    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    loss = {name: one["loss"] for name, one in found.data.items()}
    rows = {name: paired(values, loss[NONE]).values for name, values in loss.items() if name != NONE}
    draw_differences(left, rows, colour=COLOURS[0])
    left.set_xlabel("validation loss − none's\n(nats per token)")
    right.plot([found.data[name]["expert_flops"] for name in rows], range(len(rows)), "s", color=COLOURS[1])
    right.set_xlabel("expert FLOPs\n(vanilla = 1)")
    right.set_xlim(0, 1.1)


EXPERIMENT = Experiment(
    name="table5",
    title="Table 5: all combinations of zero, copy and constant experts",
    variants=list(ROWS.values()),
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
