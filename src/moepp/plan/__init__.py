"""What a training run will need, before it starts: memory, FLOPs, bytes and time from the configuration alone."""

from .exchange import Exchange, exchange
from .layout import Batch, Cluster, Sizes, all_sizes
from .memory import EXACT, Memory, layer_activations
from .sharding import Unit, first_shard, parameter_shapes, units
from .step import USABLE, Plan, flops_per_token, make_plan, make_plans
from .traffic import Flow, Traffic

__all__ = [
    "EXACT",
    "USABLE",
    "Batch",
    "Cluster",
    "Exchange",
    "Flow",
    "Memory",
    "Plan",
    "Sizes",
    "Traffic",
    "Unit",
    "all_sizes",
    "exchange",
    "first_shard",
    "flops_per_token",
    "layer_activations",
    "make_plan",
    "make_plans",
    "parameter_shapes",
    "units",
]
