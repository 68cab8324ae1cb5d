"""The paper gives no initialisation of v (Eq. 5) and W^g (Eq. 6): the released code's, and ours."""

from .experiment import Experiment
from .lab import Lab
from .result import Claim, Result, Table
from .sweep import compare_pairs, draw, length, models
from .text import agreement, nats
from .variants import MOEPP, NORMAL_CONSTANTS, NORMAL_RESIDUAL

BASE = MOEPP.short()
PAIRS = [(NORMAL_CONSTANTS, BASE), (NORMAL_RESIDUAL, BASE)]
PROBE = Table(
    "An earlier probe: one seed, γ = 1.1, β = .01, weights as in Eq. 1, 300 steps of 4,096 tokens",
    ["", "validation loss"],
    [
        ["v ~ N(0, 1) and W^g as torch's linear layer, as released", "4.85"],
        ["v ~ N(0, .02²)", "4.80"],
        ["W^g = 0", "4.77"],
        ["vanilla", "4.71"],
    ],
)


def result(lab: Lab) -> Result:
    """The recipe has v ~ N(0, .02²) and W^g = 0."""
    found = compare_pairs(lab, PAIRS, flops_over=BASE)
    constants, residual = (lab.difference(*pair) for pair in PAIRS)
    claims = [
        Claim("v ~ N(0, 1) costs loss against N(0, .02²).", agreement(constants, "higher"), nats(constants)),
        Claim("W^g ~ N(0, .17²) costs loss against W^g = 0.", agreement(residual, "higher"), nats(residual)),
    ]
    limits = [
        length(lab, BASE),
        "The paper does not say how it initialised either. The probe had capacity, which a router that starts unevenly "
        "suffers from; here there is none.",
    ]
    return Result(tables=[PROBE, *found.tables], claims=claims, limits=limits, data=found.data)


EXPERIMENT = Experiment(
    name="sweep_init",
    title="Sweep of the initialisation of v and W^g",
    variants=models(PAIRS),
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
