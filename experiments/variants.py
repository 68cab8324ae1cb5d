"""The models that experiments compare, as changes to a scale's recipe.

All start from the scale's MoE++ model, so two variants of one seed share the order of the samples and the initial value
of every weight that both have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One model, to be trained once a seed."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Dotted keys of the recipe."""
    length: float = 1.0
    """Share of the scale's steps."""
    ffn_width: float = 1.0
    """Share of the scale's intermediate size, rounded to a multiple of 8."""
    long_context: bool = False
    """With the scale's long sequences."""

    def but(self, name: str, *, ffn_width: float | None = None, **model: Any) -> "Variant":
        """The same with other fields of ``model``."""
        changes = {**self.changes, **{f"model.{key}": value for key, value in model.items()}}
        return replace(self, name=name, changes=changes, ffn_width=ffn_width or self.ffn_width)

    def short(self) -> "Variant":
        """The same, trained for half of the steps: what sweeps compare."""
        return replace(self, length=0.5)


MOEPP = Variant("MoE++")
VANILLA = Variant("vanilla", {"model.vanilla": True})
NO_ZERO_COMPUTATION = {"num_constant_experts": 0, "num_copy_experts": 0, "num_zero_experts": 0}

TAUS = (0.1, 0.25, 0.5, 0.75, 1.0)


def with_tau(tau: float) -> Variant:
    """Table 3's; .75 is the scale's own."""
    return MOEPP if tau == 0.75 else MOEPP.but(f"τ = {tau:g}", tau=tau)


SAME_EXPERT_FLOPS = replace(MOEPP, name="MoE++, 5/3 of the tokens", length=5 / 3)
"""At tau = .75, 8 FFN and 4 zero-computation experts, .6 of vanilla's expert FLOPs a token."""


def with_types(constant: bool, copy: bool, zero: bool) -> Variant:
    """Table 5's combinations: a type that is left out takes its experts along, the other types keep theirs."""
    kinds = {"num_constant_experts": constant, "num_copy_experts": copy, "num_zero_experts": zero}
    if all(kinds.values()):
        return MOEPP
    if not any(kinds.values()):
        return VANILLA
    names = [kind.split("_")[1] for kind, there in kinds.items() if there]
    return MOEPP.but(" + ".join(reversed(names)), **{kind: 0 for kind, there in kinds.items() if not there})


NO_RESIDUAL = MOEPP.but("MoE++ without gating residuals", gating_residual=False)
VANILLA_RESIDUAL = MOEPP.but("vanilla with gating residuals", **NO_ZERO_COMPUTATION)

CONSTANTS = (0, 1, 2, 4, 8)


def with_constants(count: int) -> Variant:
    """Figure 3's."""
    known = {0: with_types(constant=False, copy=True, zero=True), 2: MOEPP}
    return known.get(count) or MOEPP.but(f"{count} constant experts", num_constant_experts=count)


# Sweeps, each against MOEPP.short() and VANILLA.short().

GAMMAS = (1.1, 2.0)
BETAS = (0.01, 0.2)


def with_gamma(gamma: float, base: Variant = MOEPP) -> Variant:
    return base.but(f"{base.name}, γ = {gamma:g}", capacity_factor=gamma).short()


def with_beta(beta: float) -> Variant:
    return MOEPP.but(f"MoE++, β = {beta:g}", router_aux_loss_coef=beta).short()


def as_published(base: Variant) -> Variant:
    """Eq. 1's plain probabilities, γ = 1.1 and β = .01: the paper's values, which the scale's recipe departs from."""
    return base.but(
        f"{base.name}, the paper's values", combine="probabilities", capacity_factor=1.1, router_aux_loss_coef=0.01
    ).short()


def with_probabilities(base: Variant) -> Variant:
    """Eq. 1's weights: the chosen probabilities as they are."""
    return base.but(f"{base.name}, weights as in Eq. 1", combine="probabilities").short()


_NORMAL = {"constant_init_std": 1.0, "residual_init_std": 0.17}
NORMAL_CONSTANTS = MOEPP.but("v ~ N(0, 1), as released", constant_init_std=1.0).short()
NORMAL_RESIDUAL = MOEPP.but("W^g ~ N(0, 1/3E), as torch's linear layer", residual_init_std=0.17).short()
AS_RELEASED = as_published(MOEPP).but("the paper's values, v and W^g as released", **_NORMAL)
"""The setting of an earlier probe, beside ``as_published(MOEPP)``, which has our v and W^g."""

# What else could be done with the FLOPs of MoE++ at tau = .75, 1.2 FFN experts per token.

THIN_FULL = VANILLA.but("vanilla, experts of .6 the width", ffn_width=0.6)
THIN = THIN_FULL.short()
THIN_SAME_FLOPS = replace(THIN_FULL, length=5 / 3)
"""The control of SAME_EXPERT_FLOPS: cheaper tokens, and more of them, without MoE++."""
TOP_1 = VANILLA.but("top-1, experts of 1.2 the width", ffn_width=1.2, top_k=1, combine="probabilities").short()
NULL = MOEPP.but(
    "null experts",
    num_constant_experts=0,
    num_copy_experts=0,
    num_zero_experts=4,
    combine="renormalize_nonzero",
    gating_residual=False,
).short()
SHARED = VANILLA.but(
    "a shared expert and top-1, each of .6 the width",
    ffn_width=0.6,
    top_k=1,
    num_shared_experts=1,
    combine="probabilities",
).short()

# The smallest MoE++ layer: one FFN expert and one that costs nothing. Eq. 1's weights: divided by their sum, a single
# choice's would always be 1.

_ONE = MOEPP.but("", num_ffn_experts=1, top_k=1, combine="probabilities", **NO_ZERO_COMPUTATION)
DENSE = _ONE.but("dense").short()
DENSE_THIN = _ONE.but("dense, .43 the width", ffn_width=0.43).short()
ONE_OR_ZERO = _ONE.but("one FFN and one zero expert", num_zero_experts=1).short()
ONE_OR_COPY = _ONE.but("one FFN and one copy expert", num_copy_experts=1).short()

LONG_CONTEXT = replace(MOEPP, name="MoE++, long context", length=0.5, long_context=True)
