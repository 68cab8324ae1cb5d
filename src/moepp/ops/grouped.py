"""Sort assignments by expert, then two grouped matrix products: the default on GPUs and under torch.compile.

T tokens, D hidden, F intermediate, N FFN experts, K top-k, P = T·K assignments.

Assignments that are not to an FFN expert sort to the tail, past the last offset, where ``grouped_mm`` computes nothing
and leaves memory uninitialised: every read of the tail goes through ``where``, forward and backward. On a CPU, where
counting costs no synchronisation, the tail is cut off instead.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend
from .dense import DenseTerm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ALIGNMENT = 16  # bytes; grouped_mm wants every row of its operands to start at a multiple


def why_not(x: Tensor, gate_up: Tensor, down: Tensor) -> str | None:
    """The reason why this backend cannot run these tensors; None if it can."""
    if x.dtype not in DTYPES:
        return f"torch's grouped_mm does not take {x.dtype}"
    for name, size in (("hidden_size", x.shape[-1]), ("intermediate_size", down.shape[-1])):
        row = size * x.element_size()
        if row % _ALIGNMENT:
            return f"grouped_mm needs rows of a multiple of {_ALIGNMENT} bytes and {name}={size} gives {row}"
    return None


def grouped_ffn(
    x: Tensor, expert: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, _: DenseTerm | None = None
) -> Tensor:
    """See :func:`moepp.ops.expert_ffn`."""
    num_experts, top_k = gate_up.shape[0], expert.shape[1]
    valid = (expert >= 0) & (expert < num_experts)
    group, order = torch.where(valid, expert, num_experts).flatten().sort(stable=True)
    # searchsorted, not bincount: on a GPU the latter waits for the device to learn its output's size.
    bounds = torch.arange(1, num_experts + 1, device=group.device, dtype=group.dtype)
    offsets = torch.searchsorted(group, bounds).to(torch.int32)
    if x.device.type == "cpu":
        order = order[: int(offsets[-1])]
        computed = None
    else:
        computed = (group < num_experts).unsqueeze(-1)

    token = order // top_k
    rows = x[token]
    if computed is not None:
        rows = torch.where(computed, rows, 0)  # its backward keeps the tail of the gradient out of x's
    gate, up = F.grouped_mm(rows, gate_up.transpose(-2, -1), offs=offsets).chunk(2, dim=-1)
    out = F.grouped_mm(F.silu(gate) * up, down.transpose(-2, -1), offs=offsets)
    if computed is not None:
        out = torch.where(computed, out, 0)
    out = out * weight.flatten()[order].unsqueeze(-1)  # float32 weights: the sum over K is taken in float32
    return torch.zeros_like(x, dtype=out.dtype).index_add(0, token, out).to(x.dtype)


BACKEND = Backend("grouped", grouped_ffn, why_not)
