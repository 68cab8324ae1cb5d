"""What FSDP makes of the parameters: units that are gathered together, and how much of each one process keeps. Exact.

``fully_shard`` cuts every parameter along its first dimension into as many parts as there are processes, rounded up:
the first processes hold full parts, the last ones may hold less, or nothing, and buffers on the wire are filled up to
full parts. So 16 experts over 32 processes leave half of them without any, and send twice what there is. FFN experts
are first shared out whole among the expert-parallel processes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..model import MoEPPConfig, MoEPPForCausalLM
from .layout import Sizes

_LAYER = re.compile(r"(?P<layer>model\.layers\.\d+)\.(?P<expert>mlp\.experts\.)?")
_TAIL_MODULES = ("model.norm", "lm_head")
_TAIL = "model.norm and lm_head"  # gathered once: the backward pass begins where the forward pass ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Parameters that FSDP gathers and reduces together; counts are numbers, not bytes."""

    name: str
    group_size: int
    """Processes over which they are cut."""
    local: int
    """What the first process, which holds the most, keeps."""
    gathered: int
    """What every process has while it computes with them."""
    padded: int
    """The same on the wire."""
    is_expert: bool
    """Whether these are FFN experts that are a unit of their own, as with expert parallelism."""
    kept: bool
    """Whether they stay gathered between the forward and the backward pass."""


def parameter_shapes(config: MoEPPConfig) -> dict[str, tuple[int, ...]]:
    """The model's own, by name; tied weights once."""
    with torch.device("meta"):
        model = MoEPPForCausalLM(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def units(shapes: Mapping[str, tuple[int, ...]], sizes: Sizes) -> list[Unit]:
    """The units at these sizes, in the order of the parameters."""
    found: dict[str, Unit] = {}
    tied = "lm_head.weight" not in shapes
    for name, shape in shapes.items():
        unit, is_expert = _unit_of(name, sizes)
        if tied and not _LAYER.match(name):
            unit = _TAIL  # tied embeddings have to be in one unit
        group = sizes.expert_fsdp if is_expert else sizes.fsdp
        whole = math.prod(shape) // (sizes.ep if is_expert else 1)
        part = math.prod(first_shard(name, shape, sizes))
        before = found.get(unit)
        found[unit] = Unit(
            name=unit,
            group_size=group,
            local=part + (before.local if before else 0),
            gathered=whole + (before.gathered if before else 0),
            padded=part * group + (before.padded if before else 0),
            is_expert=is_expert,
            kept=unit == _TAIL,
        )
    return list(found.values())


def first_shard(name: str, shape: tuple[int, ...], sizes: Sizes) -> tuple[int, ...]:
    """The first process's part of a parameter."""
    _, is_expert = _unit_of(name, sizes)
    rows, group = (shape[0] // sizes.ep, sizes.expert_fsdp) if is_expert else (shape[0], sizes.fsdp)
    return (-(-rows // group), *shape[1:])


def _unit_of(name: str, sizes: Sizes) -> tuple[str, bool]:
    match = _LAYER.match(name)
    if match is None:
        module = name.removesuffix(".weight")
        return (_TAIL if module in _TAIL_MODULES else module), False
    is_expert = match["expert"] is not None and sizes.ep > 1
    return match["layer"] + (".mlp.experts" if is_expert else ""), is_expert
