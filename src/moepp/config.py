"""What one MoE layer is made of: :class:`MoEConfig`, and the order of its experts, :class:`ExpertLayout`.

Experts are numbered ``ffn | constant | copy | zero``, the order of the published checkpoint: its router rows convert
without a permutation, and the ids of the FFN experts are contiguous from 0.
"""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import ConfigError

ExpertType = Literal["ffn", "constant", "copy", "zero"]
EXPERT_TYPES: tuple[ExpertType, ...] = get_args(ExpertType)
DropPolicy = Literal["probability", "position"]
Gate = Literal["linear", "tanh_mlp"]
Combine = Literal["probabilities", "renormalize", "renormalize_nonzero", "softmax_topk"]


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """How many experts of each type a layer has; an expert's index tells its type."""

    ffn: int
    constant: int
    copy: int
    zero: int

    @property
    def num_experts(self) -> int:
        return self.ffn + self.constant + self.copy + self.zero

    @property
    def num_zero_computation(self) -> int:
        return self.constant + self.copy + self.zero

    def count(self, kind: ExpertType) -> int:
        """The number of experts of one type."""
        return {"ffn": self.ffn, "constant": self.constant, "copy": self.copy, "zero": self.zero}[kind]

    def indices(self, kind: ExpertType) -> range:
        """The expert ids of one type."""
        before = EXPERT_TYPES[: EXPERT_TYPES.index(kind)]
        start = sum(self.count(other) for other in before)
        return range(start, start + self.count(kind))

    def type_of(self, expert: int) -> ExpertType:
        """The type of the expert with this id; ``IndexError`` outside ``[0, num_experts)``."""
        for kind in EXPERT_TYPES:
            if expert in self.indices(kind):
                return kind
        raise IndexError(f"expert {expert} of {self.num_experts}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MoEConfig:
    """One MoE layer. Equations are those of the paper, arXiv 2410.07348.

    Args:
        hidden_size: D, the width of a token.
        intermediate_size: F, the width inside an FFN expert.
        num_ffn_experts: N, the experts that compute.
        num_constant_experts: experts of Eq. 5 (replace).
        num_copy_experts: experts of Eq. 4 (skip).
        num_zero_experts: experts of Eq. 3 (discard).
        num_shared_experts: FFN experts of the same width that every token goes through besides, with weight 1; the
            router, the balance loss and capacity know nothing of them, and they have no place in the layout.
        top_k: K, the experts each token chooses.
        tau: share of a zero-computation expert's load that an FFN expert is meant to take (Eq. 7, Eq. 8).
        capacity_factor: gamma of Eq. 8 in training; ``None`` keeps every assignment.
        eval_capacity_factor: the same in evaluation and generation.
        drop_policy: who leaves a full expert first: the lowest ``probability``, or the last ``position``.
        gating_residual: add W^g times the previous layer's logits (Eq. 6).
        gate: W x, or W tanh(H x) with a hidden width of 8 times the number of experts.
        logits_std: divide a token's logits by their standard deviation and multiply by this; ``None`` leaves them.
        combine: how the chosen probabilities become weights; ``probabilities`` is Eq. 1.
        input_scale: factor on what the experts, not the router, see.
        constant_init_std: standard deviation of v (Eq. 5) at the start.
        residual_init_std: standard deviation of W^g (Eq. 6) at the start; 0 starts as a router without memory.

    Raises:
        ConfigError: a value cannot work; the message names the field, the rule and the remedy.
    """

    hidden_size: int
    intermediate_size: int
    num_ffn_experts: int
    num_constant_experts: int = 2
    num_copy_experts: int = 1
    num_zero_experts: int = 1
    num_shared_experts: int = 0
    top_k: int = 2
    tau: float = 0.75
    capacity_factor: float | None = 1.1
    eval_capacity_factor: float | None = None
    drop_policy: DropPolicy = "probability"
    gating_residual: bool = True
    gate: Gate = "linear"
    logits_std: float | None = None
    combine: Combine = "probabilities"
    input_scale: float = 1.0
    constant_init_std: float = 0.02
    residual_init_std: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_ffn_experts", "top_k"):
            self._require(name, is_int(getattr(self, name)) and getattr(self, name) >= 1, "must be an integer >= 1")
        for name in ("num_constant_experts", "num_copy_experts", "num_zero_experts", "num_shared_experts"):
            self._require(name, is_int(getattr(self, name)) and getattr(self, name) >= 0, "must be an integer >= 0")
        experts = self.layout().num_experts
        if self.top_k > experts:
            raise ConfigError(
                f"moe.top_k={self.top_k} exceeds the {experts} experts of this layer; lower top_k or add experts"
            )
        self._require("tau", _is_positive(self.tau), "must be a number > 0; the paper uses 0.1 to 1.0")
        for name in ("capacity_factor", "eval_capacity_factor", "logits_std"):
            value = getattr(self, name)
            self._require(name, value is None or _is_positive(value), "must be a number > 0, or None to switch it off")
        for name, allowed in (("drop_policy", DropPolicy), ("gate", Gate), ("combine", Combine)):
            choices = get_args(allowed)
            self._require(name, getattr(self, name) in choices, f"must be one of {', '.join(choices)}")
        self._require("gating_residual", isinstance(self.gating_residual, bool), "must be true or false")
        self._require("input_scale", is_number(self.input_scale), "must be a finite number")
        for name in ("constant_init_std", "residual_init_std"):
            value = getattr(self, name)
            self._require(name, is_number(value) and value >= 0, "must be a number >= 0")
        if self.logits_std is not None and experts < 2:
            raise ConfigError(
                f"moe.logits_std={self.logits_std!r} needs at least 2 experts to take a standard deviation over; "
                "set it to None or add experts"
            )

    def _require(self, field: str, ok: bool, rule: str) -> None:
        if not ok:
            raise ConfigError(f"moe.{field}={getattr(self, field)!r} {rule}")

    def layout(self) -> ExpertLayout:
        """Index -> type of the experts that this layer's router chooses from."""
        return ExpertLayout(
            ffn=self.num_ffn_experts,
            constant=self.num_constant_experts,
            copy=self.num_copy_experts,
            zero=self.num_zero_experts,
        )

    def vanilla(self) -> "MoEConfig":
        """The paper's baseline (Eq. 2): the same FFN experts, routed and shared, and nothing else.

        Shared experts are no part of what MoE++ adds, and stay: the twin differs in what MoE++ adds alone.
        """
        return dataclasses.replace(
            self, num_constant_experts=0, num_copy_experts=0, num_zero_experts=0, gating_residual=False
        )

    def ffn_share(self) -> float:
        """The share of assignments that go to FFN experts when tau's balance holds (Table 1)."""
        layout = self.layout()
        return self.tau * layout.ffn / (self.tau * layout.ffn + layout.num_zero_computation)


def suggested_constant_experts(num_ffn_experts: int, *, num_zero_experts: int = 1, num_copy_experts: int = 1) -> int:
    """The paper's rule of thumb for the number of constant experts (Eq. 10).

    Table 2 follows it for 16 and 32 FFN experts (2 and 6) and uses 2, not 1, for 8.
    """
    return max(num_ffn_experts // 4 - num_zero_experts - num_copy_experts, 1)


def is_int(value: object) -> bool:
    """An integer; ``True`` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """An integer or float that a float can hold and that is finite; ``True`` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_positive(value: object) -> bool:
    return is_number(value) and value > 0  # pyright: ignore[reportOperatorIssue]
