"""Bytes that a step moves between GPUs, and how long that takes.

FSDP gathers every unit before its forward pass, and again before its backward pass; a layer that runs again in the
backward pass is whole by then. Gradients are reduced as
transformers' Trainer has it: with replicas within each of them after every micro-batch, and between them once a step;
without, once a step, and until then every process keeps whole ones. Weights and gradients travel in float32. Bytes are
those that a GPU receives.

Time is a bound that good collectives come close to: a group's data enters each of its nodes once, through the links of
all its GPUs there, while it is handed round inside, over the faster links.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..model import MoEPPConfig
from .exchange import exchange
from .layout import Batch, Cluster, Sizes
from .memory import FLOAT32, accumulates_whole
from .sharding import Unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """One kind of traffic of one GPU in one step."""

    inside: float = 0.0
    """Bytes over the links of its node."""
    outside: float = 0.0
    """Bytes over its link to other nodes."""

    @property
    def total(self) -> float:
        return self.inside + self.outside

    def __add__(self, other: "Flow") -> "Flow":
        return Flow(inside=self.inside + other.inside, outside=self.outside + other.outside)

    def __mul__(self, times: float) -> "Flow":
        return Flow(inside=self.inside * times, outside=self.outside * times)

    def seconds(self, cluster: Cluster) -> float:
        """Both kinds of link at work at once."""
        return max(self.inside / cluster.node_bandwidth, self.outside / cluster.bandwidth)


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Of one step."""

    gather: Flow
    """FSDP's weights."""
    reduce: Flow
    """FSDP's gradients, and their sum over replicas."""
    exchange: Flow
    """Expert parallelism's rows."""


def traffic(config: MoEPPConfig, units: Sequence[Unit], batch: Batch, sizes: Sizes, cluster: Cluster) -> Traffic:
    """What one GPU receives in a step."""
    gather = reduce = Flow()
    micro_batches = batch.micro_batches / sizes.gpus
    for unit in units:
        stride = sizes.ep if unit.is_expert else 1
        collective = _all_gather(FLOAT32 * unit.padded, unit.group_size, stride, cluster)
        gather += collective * ((1 if unit.kept else 2) * micro_batches)
        reduce += collective * (1 if accumulates_whole(batch, sizes) else micro_batches)
        share = FLOAT32 * unit.padded / unit.group_size
        reduce += _all_gather(share, sizes.replicate, sizes.fsdp, cluster) * 2  # a reduction, then a gathering
    layer = exchange(config, batch, sizes)
    passes = 3 if batch.checkpointing else 2
    rows = layer.rows * layer.row_bytes * config.num_hidden_layers * passes
    return Traffic(
        gather=gather,
        reduce=reduce,
        exchange=_all_to_all(rows, sizes.ep, cluster) * micro_batches,
    )


def _nodes(size: int, stride: int, cluster: Cluster) -> int:
    """Over how many nodes a group of ranks, ``stride`` apart, is spread."""
    in_a_node = max(1, cluster.gpus_per_node // stride)
    return -(-size // in_a_node)


def _all_gather(whole: float, size: int, stride: int, cluster: Cluster) -> Flow:
    nodes = _nodes(size, stride, cluster)
    shared_by = size / nodes
    return Flow(
        inside=whole * (shared_by - 1) / shared_by if nodes > 1 else whole * (size - 1) / size,
        outside=whole * (nodes - 1) / nodes / shared_by,
    )


def _all_to_all(rows: float, size: int, cluster: Cluster) -> Flow:
    in_a_node = size / _nodes(size, 1, cluster)
    return Flow(inside=rows * (in_a_node - 1) / size, outside=rows * (size - in_a_node) / size)
