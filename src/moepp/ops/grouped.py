"""Sort assignments by expert, then two grouped matrix products: the default on GPUs and under torch.compile.

T tokens, D hidden, F intermediate, N FFN experts, K top-k, P = T·K assignments.

Assignments that are not to an FFN expert sort to the tail, past the last offset, where ``grouped_mm`` computes nothing
and leaves memory uninitialised: every read of the tail goes through ``where``, forward and backward. On a CPU, where
counting costs no synchronisation, the tail is cut off instead, unless torch.compile wants shapes that no data decides.
"""

from typing import Any

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
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        order = order[: int(offsets[-1])]
        computed = None
    else:
        computed = (group < num_experts).unsqueeze(-1)

    token = order // top_k
    rows = x[token]
    if computed is not None:
        rows = torch.where(computed, rows, 0)  # its backward keeps the tail of the gradient out of x's
    gate, up = _product(rows, gate_up, offsets).chunk(2, dim=-1)
    out = _product(F.silu(gate) * up, down, offsets)
    if computed is not None:
        out = torch.where(computed, out, 0)
    out = out * weight.flatten()[order].unsqueeze(-1)  # float32 weights: the sum over K is taken in float32
    return torch.zeros_like(x, dtype=out.dtype).index_add(0, token, out).to(x.dtype)


def _product(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """``rows[i] @ weight[e].T`` for the rows i of each expert e; (P, out) from (P, in) and (N, out, in)."""
    if torch.compiler.is_compiling() and rows.dtype != torch.bfloat16:
        return _opaque_product(rows, weight, offsets)
    return F.grouped_mm(rows, weight.transpose(-2, -1), offs=offsets)


# torch.compile knows grouped_mm's shapes for bfloat16 only; for other dtypes it is told them here.
@torch.library.custom_op("moepp::grouped_product", mutates_args=())
def _opaque_product(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return F.grouped_mm(rows, weight.transpose(-2, -1), offs=offsets)


@_opaque_product.register_fake
def _product_shape(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[1])


@torch.library.custom_op("moepp::grouped_product_backward", mutates_args=())
def _product_backward(grad: Tensor, rows: Tensor, weight: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    grad = grad.contiguous()
    return F.grouped_mm(grad, weight, offs=offsets), F.grouped_mm(grad.t(), rows, offs=offsets)


@_product_backward.register_fake
def _product_backward_shapes(grad: Tensor, rows: Tensor, weight: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_product_backward(grad, *ctx.saved_tensors), None


_opaque_product.register_autograd(_backward, setup_context=_setup_context)

BACKEND = Backend("grouped", grouped_ffn, why_not)
