"""The smallest MoE++ layer: one FFN expert and one that costs nothing, against dense models."""

import statistics

from .compare import setup, shares
from .experiment import Experiment
from .lab import Lab
from .result import Result
from .sweep import compare_pairs, contest, draw, models
from .variants import DENSE, DENSE_THIN, ONE_OR_COPY, ONE_OR_ZERO

OURS = (ONE_OR_ZERO, ONE_OR_COPY)
PAIRS = [(DENSE_THIN, DENSE), *((ours, dense) for ours in OURS for dense in (DENSE, DENSE_THIN))]


def result(lab: Lab) -> Result:
    """Top-1: a token computes, or it does not."""
    found = compare_pairs(lab, PAIRS, flops_over=DENSE)
    spent = {name: one["expert_flops"] for name, one in found.data["models"].items()}
    claims = []
    for ours in OURS:
        computing = statistics.fmean(shares(lab, ours).values())
        more = (
            f"Expert FLOPs over those of full width: {spent[ours.name]:.2f} and {spent[DENSE_THIN.name]:.2f}; "
            f"{computing:.1%} of the held-out tokens compute."
        )
        claims += [
            contest(
                lab, ours, DENSE_THIN, f"A layer of {ours.name} is better than a dense one of .43 the width.", more=more
            ),
            contest(lab, ours, DENSE, f"A layer of {ours.name} is worse than a dense one of full width.", lower=False),
        ]
    limits = [
        setup(lab, DENSE),
        "Top-1 with the weights of Eq. 1: the router learns because the chosen probability scales the output, so that "
        "what an FFN expert adds is smaller than in the dense models.",
    ]
    return Result(tables=found.tables, claims=claims, limits=limits, data=found.data)


EXPERIMENT = Experiment(
    name="smallest",
    title="The smallest MoE++ layer",
    variants=models(PAIRS),
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
