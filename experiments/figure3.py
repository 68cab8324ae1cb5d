"""Figure 3: how many constant experts."""

from typing import TYPE_CHECKING

from .compare import compared, setup
from .experiment import Experiment
from .lab import Lab
from .outcomes import above, below
from .paired import paired
from .result import Claim, Result
from .text import nats
from .variants import CONSTANTS, VANILLA, with_constants

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEST = 2
"""The paper's Table 2 for 8 FFN experts; its Eq. 10 says 1."""
ROWS = {f"{count} constant": with_constants(count) for count in CONSTANTS}
NONE, BEST_ROW, MOST_ROW = f"{CONSTANTS[0]} constant", f"{BEST} constant", f"{CONSTANTS[-1]} constant"


def result(lab: Lab) -> Result:
    """Loss over the number, beside what each spends."""
    tables, data = compared(lab, ROWS, [NONE, BEST_ROW])
    rise, fall = lab.difference(ROWS[BEST_ROW], ROWS[NONE]), lab.difference(ROWS[MOST_ROW], ROWS[BEST_ROW])
    claims = [
        Claim(f"{BEST} constant experts are better than none: quality rises.", below(rise), nats(rise)),
        Claim(
            f"{CONSTANTS[-1]} constant experts are worse than {BEST}: quality falls.",
            above(fall),
            nats(fall),
        ),
    ]
    spent = ", ".join(f"{one['expert_flops']:.2f} with {name}" for name, one in data.items())
    limits = [
        "The paper's Figure 3 is a curve without a table, so there are no numbers to set beside ours.",
        "With τ as it is, each further constant expert takes choices from the FFN experts: expert FLOPs over vanilla's "
        f"are {spent}. A fall of quality is a fall of FLOPs too.",
        setup(lab),
    ]
    return Result(tables=tables, claims=claims, limits=limits, data=data)


def draw(found: Result, figure: "Figure") -> None:
    """The loss, its difference to that without constant experts, and FLOPs, over the number."""
    from .plots import COLOURS

    left, right = figure.subplots(1, 2)
    loss = {name: one["loss"] for name, one in found.data.items()}
    counts = range(len(loss))
    differences = [paired(values, loss[NONE]) for values in loss.values()]
    for place, one in zip(counts, differences, strict=True):
        left.plot([place] * len(one.values), one.values, "o", color=COLOURS[0], alpha=0.6, markersize=4)
        if place and len(one.values) > 1:
            left.plot([place, place], [one.low, one.high], "-", color=COLOURS[0], linewidth=1.5)
    left.plot(counts, [one.mean for one in differences], "_-", color=COLOURS[0], markersize=12, linewidth=0.8)
    left.axhline(0, color="#666666", linewidth=1)
    left.set_ylabel("validation loss − without\n(nats per token)")
    right.plot(counts, [one["expert_flops"] for one in found.data.values()], "s-", color=COLOURS[1])
    right.set_ylabel("expert FLOPs (vanilla = 1)")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xticks(counts, list(map(str, CONSTANTS)))
        axes.set_xlabel("constant experts")


EXPERIMENT = Experiment(
    name="figure3",
    title="Figure 3: the number of constant experts",
    variants=[VANILLA, *ROWS.values()],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
