"""The paper: router, experts, capacity, losses and the layer that composes them."""

from .capacity import expert_capacity, keep_mask
from .ffn_experts import FFNExperts
from .losses import balance_loss, balance_loss_of, z_loss
from .moe import MoE
from .quantized_experts import QuantizedExperts
from .routing import Router, Routing
from .stats import RoutingStats
from .zero_experts import ZeroComputationExperts

__all__ = [
    "FFNExperts",
    "MoE",
    "QuantizedExperts",
    "Router",
    "Routing",
    "RoutingStats",
    "ZeroComputationExperts",
    "balance_loss",
    "balance_loss_of",
    "expert_capacity",
    "keep_mask",
    "z_loss",
]
