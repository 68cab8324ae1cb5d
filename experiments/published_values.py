"""The paper's own values, which the scale's recipe departs from: which departure matters, and who wins under them."""

from .compare import setup
from .experiment import Experiment
from .lab import Lab
from .result import Result
from .sweep import compare_pairs, contest, draw, models
from .variants import MOEPP, VANILLA, as_published, with_probabilities

BASE, TWIN = MOEPP.short(), VANILLA.short()
PAIRS = [
    (BASE, TWIN),
    (as_published(MOEPP), as_published(VANILLA)),
    (with_probabilities(MOEPP), with_probabilities(VANILLA)),
    *((change(base), base.short()) for base in (MOEPP, VANILLA) for change in (as_published, with_probabilities)),
]


def result(lab: Lab) -> Result:
    """All three values, and the weights alone."""
    found = compare_pairs(lab, PAIRS, flops_over=TWIN)
    settings = ("with the recipe's values", "with the paper's values", "with the paper's weights alone")
    claims = [
        contest(lab, *pair, f"MoE++ is better than vanilla {setting}.")
        for pair, setting in zip(PAIRS, settings, strict=False)
    ]
    for ours, base in PAIRS[len(settings) :]:
        what = "The weights of Eq. 1, not divided by their sum, cost"
        if ours == as_published(base):
            what = "The paper's values cost"
        claims.append(contest(lab, ours, base, f"{what} {base.name} loss.", lower=False))
    limits = [
        setup(lab, BASE),
        "The paper's values: weights as in Eq. 1, γ = 1.1, β = .01. Of γ and β alone the sweeps tell. The expert FLOPs "
        "differ: see the table before reading a loss.",
    ]
    return Result(tables=found.tables, claims=claims, limits=limits, data=found.data)


EXPERIMENT = Experiment(
    name="published_values",
    title="The paper's own values of γ, β and the weights",
    variants=models(PAIRS),
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
