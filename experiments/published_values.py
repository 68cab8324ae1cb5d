"""The paper's own values, which the scale's recipe departs from: which departure matters, and who wins under them."""

from .experiment import Experiment
from .lab import Lab
from .result import Claim, Result
from .sweep import compare_pairs, draw, length, models
from .text import agreement, nats
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
    settings = ("with the paper's values", "with the paper's weights alone", "with the recipe's values")
    contests = [lab.difference(*pair) for pair in (PAIRS[1], PAIRS[2], PAIRS[0])]
    claims = [
        Claim(f"MoE++ is better than vanilla {setting}.", agreement(found_, "lower"), nats(found_))
        for setting, found_ in zip(settings, contests, strict=True)
    ]
    for base in (MOEPP, VANILLA):
        every, weights = (lab.difference(change(base), base.short()) for change in (as_published, with_probabilities))
        claims += [
            Claim(f"The paper's values cost {base.name} loss.", agreement(every, "higher"), nats(every)),
            Claim(
                f"The weights of Eq. 1, not divided by their sum, cost {base.name} loss.",
                agreement(weights, "higher"),
                nats(weights),
            ),
        ]
    limits = [
        length(lab, BASE),
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
