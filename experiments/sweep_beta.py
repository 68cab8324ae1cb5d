"""The balance loss's weight: what it takes to reach the FFN share that tau implies, and what that costs."""

import statistics

from .compare import setup, shares
from .experiment import Experiment
from .lab import Lab
from .outcomes import above
from .paired import paired
from .result import Claim, Result
from .sweep import compare_pairs, contest, draw, models
from .text import said
from .variants import BETAS, MOEPP, Variant, with_beta

BASE = MOEPP.short()
PAIRS = [(with_beta(beta), BASE) for beta in BETAS]


def result(lab: Lab) -> Result:
    """Weaker and stronger than the recipe's .05."""
    found = compare_pairs(lab, PAIRS, flops_over=BASE)
    weak, strong = (with_beta(beta) for beta in BETAS)
    nearer = paired(_distance(lab, weak), _distance(lab, BASE))
    reached = {one.name: statistics.fmean(shares(lab, one).values()) for one in (weak, BASE, strong)}
    claims = [
        Claim(
            "A short run at β = .01, the paper's, stays further from the FFN share that τ implies than one at β = .05.",
            above(nearer),
            f"Distance from the aim at .01 less that at .05, as a share of the choices: {said(nearer)}. Reached at "
            f".01, .05 and .2: {', '.join(f'{share:.1%}' for share in reached.values())}.",
        ),
        contest(lab, BASE, weak, "β = .05 costs loss against β = .01.", lower=False),
        contest(lab, strong, BASE, "β = .2 costs loss against β = .05.", lower=False),
    ]
    limits = [
        setup(lab, BASE),
        "β acts step by step: whether a long run at .01 comes to its aim is not told here. Models with different FFN "
        "shares spend different FLOPs, so a lower loss may be bought.",
    ]
    return Result(tables=found.tables, claims=claims, limits=limits, data=found.data)


def _distance(lab: Lab, variant: Variant) -> dict[int, float]:
    """Of the FFN share reached from the one aimed at, averaged over layers, by seed."""
    return {
        seed: statistics.fmean(abs(share - one.ffn_share_target) for share in one.ffn_share)
        for seed, one in lab.records(variant).items()
    }


EXPERIMENT = Experiment(
    name="sweep_beta",
    title="Sweep of β, the balance loss's weight",
    variants=models(PAIRS),
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
