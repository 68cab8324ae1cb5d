"""What else could be done with the FLOPs of MoE++ at tau = .75: some 1.2 FFN experts a token."""

from .experiment import Experiment
from .lab import Lab
from .result import Claim, Result
from .sweep import compare_pairs, draw, length, models
from .text import agreement, nats
from .variants import MOEPP, NULL, SHARED, THIN, TOP_1, VANILLA

BASE, TWIN = MOEPP.short(), VANILLA.short()
OTHERS = [THIN, TOP_1, NULL, SHARED]
PAIRS = [(BASE, other) for other in (TWIN, *OTHERS)]


def result(lab: Lab) -> Result:
    """MoE++ against thinner experts, top-1, null experts and a shared expert."""
    found = compare_pairs(lab, PAIRS, flops_over=TWIN)
    spent = {name: one["expert_flops"] for name, one in found.data["models"].items()}
    claims = []
    for other in OTHERS:
        difference = lab.difference(BASE, other)
        claims.append(
            Claim(
                f"At about the same expert FLOPs, MoE++ is better than {other.name}.",
                agreement(difference, "lower"),
                f"{nats(difference)}. Expert FLOPs over vanilla's: {spent[BASE.name]:.2f} and {spent[other.name]:.2f}.",
            )
        )
    limits = [
        length(lab, BASE),
        "The FLOPs are equal by design; what a router makes of them is measured. Parameters differ, and experts of .6 "
        "the width have less memory to move. A shared expert's FLOPs count; of the FFN share of the choices it is no "
        "part. Nobody's settings were tuned: all have the recipe's.",
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
