"""Counting within groups: which of its group's entries each entry is.

P entries.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from . import triton_experts


def places(group: Int[Tensor, "P"], groups: int, *, backend: str = "auto") -> Int[Tensor, "P"]:
    """How many earlier entries belong to the same group, for each of P entries in ``[0, groups)``.

    With ``backend="triton"`` it is the experts' counting sort, else a stable one.
    """
    if backend == "triton" and triton_experts.why_not_here(group) is None:
        _, position, offsets = triton_experts.dispatch(group, groups)
        return position - offsets[group]
    ordered, order = group.sort(stable=True)
    start = torch.searchsorted(ordered, torch.arange(groups, device=group.device, dtype=group.dtype))
    place = torch.arange(group.numel(), device=group.device) - start[ordered]
    return torch.empty_like(place).scatter(0, order, place)
