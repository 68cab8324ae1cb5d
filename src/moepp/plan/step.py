"""The plan of a run at given sizes: what it needs, how long a step takes, whether it fits.

Time is modelled: products run at a given share of the peak; gathering and reducing overlap with them, to the last byte;
the exchange of rows doesn't overlap with anything, because a layer's next product waits for it. The optimizer, the
data and what else there is are taken to cost nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..model import MoEPPConfig, account
from .layout import Batch, Cluster, Sizes, all_sizes
from .memory import Memory, memory
from .sharding import Unit, units
from .traffic import Traffic, traffic

USABLE = 0.9
"""The share of a GPU's memory that a plan may fill; CUDA, NCCL and fragmentation have the rest."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A run at given sizes; times in seconds."""

    sizes: Sizes
    units: tuple[Unit, ...]
    memory: Memory
    fits: bool
    traffic: Traffic
    flops: float
    """Of one GPU in a step, running layers again included."""
    computing: float
    gathering: float
    """FSDP's traffic."""
    exchanging: float
    step: float


def make_plan(config: MoEPPConfig, shapes: Shapes, batch: Batch, sizes: Sizes, cluster: Cluster) -> Plan:
    """Args:
    shapes: the parameters', :func:`moepp.plan.parameter_shapes`.
    """
    cut = units(shapes, sizes)
    needed = memory(config, cut, len(shapes), batch, sizes)
    moved = traffic(config, cut, batch, sizes, cluster)
    flops = flops_per_token(config, batch) * batch.tokens * batch.micro_batches / sizes.gpus
    computing = flops / (cluster.peak * cluster.utilisation)
    gathering, exchanging = (moved.gather + moved.reduce).seconds(cluster), moved.exchange.seconds(cluster)
    return Plan(
        sizes=sizes,
        units=tuple(cut),
        memory=needed,
        fits=needed.total <= USABLE * cluster.gpu_memory,
        traffic=moved,
        flops=flops,
        computing=computing,
        gathering=gathering,
        exchanging=exchanging,
        step=max(computing, gathering) + exchanging,
    )


def make_plans(config: MoEPPConfig, shapes: Shapes, batch: Batch, gpus: int, cluster: Cluster) -> list[Plan]:
    """One for all sizes of so many GPUs; those that fit before the others, and the fastest first.

    Where all traffic is hidden behind computing, the one with the least to hide counts as faster.
    """
    found = [make_plan(config, shapes, batch, sizes, cluster) for sizes in all_sizes(gpus, config.num_ffn_experts)]
    return sorted(found, key=lambda plan: (not plan.fits, plan.step, plan.gathering))


def flops_per_token(config: MoEPPConfig, batch: Batch) -> float:
    """Three forward passes, and a fourth of the layers, not of the head, with activation checkpointing."""
    counts = account(config, context=batch.sequence_length)
    again = counts.forward_flops_per_token - 2 * config.vocab_size * config.hidden_size
    return counts.training_flops_per_token + (again if batch.checkpointing else 0.0)
