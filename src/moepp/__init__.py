"""Mixture-of-Experts with zero-computation experts (MoE++, arXiv 2410.07348): the layer API, on torch alone."""

from .config import ExpertLayout, MoEConfig, suggested_constant_experts
from .errors import BackendUnavailable, ConfigError, ConversionError, DataError, MoEPPError
from .layers import (
    FFNExperts,
    MoE,
    Router,
    Routing,
    RoutingStats,
    ZeroComputationExperts,
    balance_loss,
    expert_capacity,
    keep_mask,
    z_loss,
)
from .ops import expert_ffn

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "ConfigError",
    "ConversionError",
    "DataError",
    "ExpertLayout",
    "FFNExperts",
    "MoE",
    "MoEConfig",
    "MoEPPError",
    "Router",
    "Routing",
    "RoutingStats",
    "ZeroComputationExperts",
    "balance_loss",
    "expert_capacity",
    "expert_ffn",
    "keep_mask",
    "suggested_constant_experts",
    "z_loss",
]
