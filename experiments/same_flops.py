"""What else could be done with the FLOPs of MoE++ at tau = .75: some 1.2 FFN experts a token."""

from .compare import setup
from .experiment import Experiment
from .lab import Lab
from .result import Result
from .sweep import compare_pairs, contest, draw, models
from .variants import MOEPP, NULL, SHARED, THIN, TOP_1, VANILLA, with_probabilities

BASE, TWIN = MOEPP.short(), VANILLA.short()
EQ_1 = with_probabilities(MOEPP)
"""TOP_1's and SHARED's weights are Eq. 1's, since those of a single choice, divided by their sum, would always be 1."""
RIVALS = [(BASE, THIN), (EQ_1, TOP_1), (BASE, NULL), (EQ_1, SHARED)]
PAIRS = [(BASE, TWIN), *RIVALS]


def result(lab: Lab) -> Result:
    """MoE++ against thinner experts, top-1, null experts and a shared expert."""
    found = compare_pairs(lab, PAIRS, flops_over=TWIN)
    spent = {name: one["expert_flops"] for name, one in found.data["models"].items()}
    claims = [
        contest(
            lab,
            ours,
            theirs,
            f"At about the same expert FLOPs, {ours.name} is better than {theirs.name}.",
            more=f"Expert FLOPs over vanilla's: {spent[ours.name]:.2f} and {spent[theirs.name]:.2f}.",
        )
        for ours, theirs in RIVALS
    ]
    limits = [
        setup(lab, BASE),
        "The FLOPs are equal by design; what a router makes of them is measured. Parameters differ, and experts of .6 "
        "the width have less memory to move. A shared expert's FLOPs count; of the FFN share of the choices it is no "
        "part.",
        "Models of a single routed choice have the weights of Eq. 1, so MoE++ meets them with those. Null experts have "
        "their paper's weights, divided by the sum over FFN experts, and no gating residuals. Nobody's learning rate, "
        "β or width was tuned.",
    ]
    return Result(tables=found.tables, claims=claims, limits=limits, data=found.data)


EXPERIMENT = Experiment(
    name="same_flops",
    title="What else could be done with the same FLOPs",
    variants=models(PAIRS),
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
