"""The paper gives no initialisation of v (Eq. 5) and W^g (Eq. 6): the released code's, and ours."""

from .compare import setup
from .experiment import Experiment
from .lab import Lab
from .result import Result, Table
from .sweep import compare_pairs, contest, draw, models
from .variants import AS_RELEASED, MOEPP, NORMAL_CONSTANTS, NORMAL_RESIDUAL, VANILLA, as_published

BASE, PUBLISHED = MOEPP.short(), as_published(MOEPP)
PAIRS = [
    (AS_RELEASED, PUBLISHED),
    (PUBLISHED, as_published(VANILLA)),
    (NORMAL_CONSTANTS, BASE),
    (NORMAL_RESIDUAL, BASE),
]
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
    """In the probe's setting, and in the recipe's, which has v ~ N(0, .02²) and W^g = 0."""
    found = compare_pairs(lab, PAIRS, flops_over=BASE)
    texts = [
        "In the probe's setting, v and W^g as released cost loss against v ~ N(0, .02²) and W^g = 0.",
        "In the probe's setting, MoE++ with v ~ N(0, .02²) and W^g = 0 is worse than vanilla.",
        "In the recipe's setting, v ~ N(0, 1) costs loss against N(0, .02²).",
        "In the recipe's setting, W^g ~ N(0, .17²) costs loss against W^g = 0.",
    ]
    claims = [contest(lab, *pair, text, lower=False) for pair, text in zip(PAIRS, texts, strict=True)]
    limits = [
        setup(lab, BASE),
        "The probe's setting, the paper's values: γ = 1.1, β = .01, weights as in Eq. 1. The probe changed v and W^g "
        "one after the other, here both are changed at once in its setting and each alone in the recipe's, which has "
        "no capacity for a router that starts unevenly to suffer from.",
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
