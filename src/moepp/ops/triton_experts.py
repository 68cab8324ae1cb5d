"""FFN experts as Triton kernels: tokens gathered by the products that read them, no sort, no host synchronisation.

T tokens, D hidden, F intermediate, N FFN experts, K top-k, P = T·K assignments, C constant experts.

Forward: dispatch → gate, up and SwiGLU → down → weighted combine with the zero-computation term. Saved for backward:
gate and up of every assignment, P · 2F numbers; all else is recomputed. See docs/kernels.md.

The kernels are imported when one first runs: without Triton, or without using this backend, importing moepp loads none.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backend import Backend
from .dense import DenseTerm

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch, read when its kernels are defined


def why_not_here(x: Tensor) -> str | None:
    """The reason why Triton kernels cannot run on this tensor's device; None if they can."""
    if not _INSTALLED:
        return "triton is not installed"
    if x.device.type != "cuda" and not _INTERPRETED:
        return f"Triton needs a CUDA GPU and the tensors are on {x.device.type!r}"
    return None


def why_not(x: Tensor, gate_up: Tensor, down: Tensor) -> str | None:
    """The reason why this backend cannot run these tensors; None if it can."""
    if (reason := why_not_here(x)) is not None:
        return reason
    if x.dtype not in DTYPES:
        return f"its kernels do not take {x.dtype}"
    # Under autocast expert_ffn hands the kernel weights in x's dtype, whatever they are kept in.
    if not x.dtype == gate_up.dtype == down.dtype and not torch.is_autocast_enabled(x.device.type):
        return f"tokens and weights differ in dtype: {x.dtype}, {gate_up.dtype}, {down.dtype}"
    return None


def triton_ffn(
    x: Tensor, expert: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, dense: DenseTerm | None
) -> Tensor:
    """See :func:`moepp.ops.expert_ffn`."""
    scale, shift, constant = (None, None, None) if dense is None else dense
    leaves = (x, weight, gate_up, down, scale, shift, constant)
    save = torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves)
    tables = dispatch(expert, len(gate_up))
    y, _ = _forward(x, weight, gate_up, down, scale, shift, constant, *tables, save)
    return y


@torch.library.custom_op("moepp::triton_dispatch", mutates_args=())
def dispatch(expert: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    from .triton_dispatch import dispatch as sort_by_expert

    if not expert.numel():
        order, position, offsets = _dispatch_shapes(expert, num_experts)
        return order, position, offsets.zero_()
    with torch.cuda.device_of(expert):  # Triton launches on the current device, whatever the tensors' is
        order, position, offsets = sort_by_expert(expert, num_experts)
    return order, position, offsets


@dispatch.register_fake
def _dispatch_shapes(expert: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (expert.numel(), expert.numel(), num_experts + 1)
    order, position, offsets = (expert.new_empty(size, dtype=torch.int32) for size in sizes)
    return order, position, offsets


@torch.library.custom_op("moepp::triton_experts", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    gate_up: Tensor,
    down: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    constant: Tensor | None,
    order: Tensor,
    position: Tensor,
    offsets: Tensor,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """The experts' output and, if ``save``, gate and up of every row."""
    from .triton_combine import combine
    from .triton_dispatch import Dispatch
    from .triton_forward import multiply_rows, swiglu

    if not len(x):
        return _forward_shapes(x, weight, gate_up, down, scale, shift, constant, order, position, offsets, save)
    x, weight, gate_up, down = (t.contiguous() for t in (x, weight, gate_up, down))
    rows = Dispatch(order, position, offsets)
    with torch.cuda.device_of(x):
        product, halves = swiglu(x, gate_up, rows, save=save)
        out = multiply_rows(product, down, rows, transposed=False)
        return combine(out, position, weight, x, _term(scale, shift, constant), top_k=weight.shape[1]), halves


@_forward.register_fake
def _forward_shapes(
    x: Tensor,
    weight: Tensor,
    gate_up: Tensor,
    down: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    constant: Tensor | None,
    order: Tensor,
    position: Tensor,
    offsets: Tensor,
    save: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(order.shape[0] if save else 0, gate_up.shape[1])


@torch.library.custom_op("moepp::triton_experts_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gate_up: Tensor,
    down: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    constant: Tensor | None,
    order: Tensor,
    position: Tensor,
    offsets: Tensor,
    halves: Tensor,
    needed: list[bool],
) -> list[Tensor]:
    """The gradients of x, weight, gate_up, down, scale, shift and constant; an empty tensor for one not needed."""
    from .triton_backward import swiglu_backward, weight_gradient
    from .triton_combine import combine, dense_backward
    from .triton_dispatch import Dispatch
    from .triton_forward import multiply_rows

    leaves = (x, weight, gate_up, down, scale, shift, constant)
    if not len(x):
        return [x.new_empty(0) if leaf is None else torch.zeros_like(leaf) for leaf in _needed(leaves, needed)]
    found: list[Tensor | None] = [None] * len(leaves)
    grad, x, weight, gate_up, down = (t.contiguous() for t in (grad, x, weight, gate_up, down))
    rows = Dispatch(order, position, offsets)
    dense = _term(scale, shift, constant)
    top_k = weight.shape[1]
    with torch.cuda.device_of(x):
        if any(needed[:4]):
            grad_halves, found[1], weighted = swiglu_backward(grad, down, halves, weight, rows)
            if needed[0]:
                to_tokens = multiply_rows(grad_halves, gate_up, rows, transposed=True)
                through = None if dense is None else DenseTerm(dense.scale, None, None)
                found[0] = combine(to_tokens, position, None, grad, through, top_k=top_k)
            if needed[2]:
                found[2] = weight_gradient(grad_halves, x, gate_up, rows, top_k=top_k, gather="b")
            if needed[3]:
                found[3] = weight_gradient(grad, weighted, down, rows, top_k=top_k, gather="a")
        if dense is not None and any(needed[4:]):
            found[4:] = dense_backward(grad, x, dense)
    return [x.new_empty(0) if gradient is None else gradient for gradient in _needed(found, needed)]


@_backward.register_fake
def _backward_shapes(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gate_up: Tensor,
    down: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    constant: Tensor | None,
    order: Tensor,
    position: Tensor,
    offsets: Tensor,
    halves: Tensor,
    needed: list[bool],
) -> list[Tensor]:
    leaves = (x, weight, gate_up, down, scale, shift, constant)
    return [x.new_empty(0) if leaf is None else leaf.new_empty(leaf.shape) for leaf in _needed(leaves, needed)]


def _needed(tensors: Sequence[Tensor | None], needed: list[bool]) -> list[Tensor | None]:
    return [tensor if need else None for tensor, need in zip(tensors, needed, strict=True)]


def _term(scale: Tensor | None, shift: Tensor | None, constant: Tensor | None) -> DenseTerm | None:
    if scale is None:
        return None
    shift, constant = (None if t is None else t.contiguous() for t in (shift, constant))
    return DenseTerm(scale.contiguous(), shift, constant)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:-1], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else backward is handed as many zeros as `halves` has numbers


def _backward_of_forward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:7])
    found = _backward(grad, *ctx.saved_tensors, needed)
    return *_needed(found, needed), *[None] * 4


_forward.register_autograd(_backward_of_forward, setup_context=_setup_context)

# `auto` keeps to grouped_mm on a GPU: nobody has measured these kernels on one yet, and what was not measured is not
# chosen. Once they have been, `suits` says for which tokens they are faster.
BACKEND = Backend("triton", triton_ffn, why_not, suits=lambda *_: False, takes_dense=True)
