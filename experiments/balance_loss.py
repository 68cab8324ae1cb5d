"""Uniform against heterogeneous balance loss (Eq. 7).

Without capacity, tau occurs in Eq. 7 alone: with eta = 1 for all experts it *is* tau = 1, the model of Table 3.
"""

from . import paper
from .compare import setup, shares
from .experiment import Experiment
from .lab import Lab
from .outcomes import below
from .paired import paired
from .result import Claim, Result, Table
from .sweep import compare_pairs, contest, draw, models
from .text import said
from .variants import MOEPP, VANILLA, with_tau

UNIFORM = with_tau(1.0)
TAUS = (0.5, 0.75)
PAIRS = [(UNIFORM, VANILLA), *((with_tau(tau), UNIFORM) for tau in TAUS)]


def result(lab: Lab) -> Result:
    """tau = 1 against the recipe's .75, and .5."""
    found = compare_pairs(lab, PAIRS, flops_over=VANILLA)
    fewer = paired(shares(lab, MOEPP), shares(lab, UNIFORM))
    spent = {name: one["expert_flops"] for name, one in found.data["models"].items()}
    aims = {name: one["ffn_share_target"] for name, one in found.data["models"].items()}
    claims = [
        Claim(
            "The heterogeneous loss (τ = .75) sends fewer choices to FFN experts than the uniform one.",
            below(fewer),
            f"{said(fewer, 'points', times=100, digits=2)}; the aim is "
            f"{100 * (aims[MOEPP.name] - aims[UNIFORM.name]):+.2f} points.",
        ),
        contest(
            lab,
            MOEPP,
            UNIFORM,
            "At equal tokens, the heterogeneous loss (τ = .75) is better than the uniform one, as in the paper's 0.6B "
            "model (not in its 1B and 2B models).",
            more=f"Expert FLOPs over vanilla's: {spent[MOEPP.name]:.2f} and {spent[UNIFORM.name]:.2f}.",
        ),
    ]
    limits = [
        setup(lab),
        "The uniform loss spends more expert FLOPs on the same tokens, so a lower loss of its models may be bought.",
        "Without capacity, η = 1 for all experts is τ = 1, so the uniform loss is Table 3's model of τ = 1. "
        "With capacity, τ = 1 would change Eq. 8 as well.",
    ]
    rows = [[f"τ = {tau:g}", *(str(by_tau[tau][1]) for by_tau in _swept())] for tau in (*TAUS, 1.0)]
    head = ["", *(name for name, by_tau in paper.TABLE_3.items() if 1.0 in by_tau)]
    published = Table("The paper, Table 3: average score; τ = 1 is the uniform loss, and capacity", head, rows)
    return Result(tables=[published, *found.tables], claims=claims, limits=limits, data=found.data)


def _swept() -> list[dict[float, tuple[float, float]]]:
    return [by_tau for by_tau in paper.TABLE_3.values() if 1.0 in by_tau]


EXPERIMENT = Experiment(
    name="balance_loss",
    title="Uniform against heterogeneous balance loss",
    variants=models(PAIRS),
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
