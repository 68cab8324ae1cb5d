"""Training on a CPU: forward and backward of all experts as one autograd function.

T tokens, D hidden, F intermediate, N FFN experts, K top-k, P pairs of a token and an FFN expert.

What it saves for the backward pass are the tokens and, per pair, the 2F inputs of SwiGLU: the gathered tokens, the
product of SwiGLU and the experts' outputs cost less to make again than to keep. ``fused_recompute`` keeps nothing per
pair and runs the first product twice.

With z = W_gate x, u = W_up x, h = silu(z) · u and y = Σ w W_down h, a gradient ȳ gives h̃ = W_downᵀ ȳ and from it
w̄ = ⟨h̃, h⟩, h̄ = w h̃, ū = h̄ silu(z), z̄ = h̄ u silu'(z), and the weights' gradients [z̄ ū]ᵀ x and (w ȳ)ᵀ h, each written
once into the memory that autograd gets.

Element-wise steps go over a few hundred rows at a time, which stay in the cache, and into memory that is used again:
on a CPU fresh memory costs a page fault every 4 KiB, which a product of this size notices.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .backend import Backend
from .dense import DenseTerm
from .dispatch import Dispatch, combine, dispatch, result_rows
from .memory import gradient_memory

DTYPES = (torch.float32, torch.bfloat16)
_CHUNK = 256  # rows of element-wise work at a time


def why_not(x: Tensor, gate_up: Tensor, down: Tensor) -> str | None:
    """The reason why this backend cannot run these tensors; None if it can."""
    if any(t.device.type != "cpu" for t in (x, gate_up, down)):
        return f"it runs on CPUs and these tensors are on {x.device.type!r}"
    if torch.compiler.is_compiling():
        return "its loop over experts cannot be traced by torch.compile"
    if x.dtype not in DTYPES or not x.dtype == gate_up.dtype == down.dtype:
        return f"it takes float32 or bfloat16 tokens and weights of one dtype, not {x.dtype} and {gate_up.dtype}"
    return None


def fused_ffn(
    x: Tensor, expert: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, _: DenseTerm | None = None
) -> Tensor:
    """See :func:`moepp.ops.expert_ffn`."""
    return _Experts.apply(x, expert, weight, gate_up, down, False)  # pyright: ignore[reportReturnType]


def fused_recompute_ffn(
    x: Tensor, expert: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, _: DenseTerm | None = None
) -> Tensor:
    """See :func:`moepp.ops.expert_ffn`; saves nothing of the size of the assignments."""
    return _Experts.apply(x, expert, weight, gate_up, down, True)  # pyright: ignore[reportReturnType]


class _Experts(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, expert: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, recompute: bool
    ) -> Tensor:
        where = dispatch(expert, len(gate_up))
        rows = result_rows(where, x.shape[1])
        largest, inner = _largest(where), down.shape[-1]
        taken, product = x.new_empty(largest, x.shape[1]), x.new_empty(largest, inner)
        out = rows if rows.dtype == x.dtype else x.new_empty(largest, x.shape[1])
        shared = x.new_empty(largest, 2 * inner) if recompute else None
        saved = []
        for index, (first, last) in _busy(where):
            count = last - first
            tokens = torch.index_select(x, 0, where.token[first:last], out=taken[:count])
            inputs = x.new_empty(count, 2 * inner) if shared is None else shared[:count]
            torch.mm(tokens, gate_up[index].t(), out=inputs)
            for piece in _pieces(count):
                z, u = inputs[piece].chunk(2, dim=-1)
                torch.mul(F.silu(z), u, out=product[piece])
            if out is rows:
                torch.mm(product[:count], down[index].t(), out=rows[first:last])
            else:
                rows[first:last] = torch.mm(product[:count], down[index].t(), out=out[:count])
            if not recompute:
                saved.append(inputs)
        ctx.where = where
        ctx.save_for_backward(x, weight, gate_up, down, *saved)
        return combine(rows, where, weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)  # a user may call backward inside of autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, gate_up, down, *saved = ctx.saved_tensors
        where: Dispatch = ctx.where
        y_grad = grads[0].contiguous()
        pair_weight = weight.flatten()[where.pair].to(x.dtype)
        rows = result_rows(where, x.shape[1])
        pair_weight_grad = rows.new_empty(len(where.pair))
        x_needed, _, _, gate_up_needed, down_needed, _ = ctx.needs_input_grad
        gate_up_grad = gradient_memory(gate_up) if gate_up_needed else None
        down_grad = gradient_memory(down) if down_needed else None
        for index, load in enumerate(_loads(where)):
            for grad in (gate_up_grad, down_grad):
                if load == 0 and grad is not None:
                    grad[index].zero_()

        largest, inner = _largest(where), down.shape[-1]
        taken, y_taken = x.new_empty(largest, x.shape[1]), x.new_empty(largest, x.shape[1])
        product, product_grad = x.new_empty(largest, inner), x.new_empty(largest, inner)
        inputs_grad = x.new_empty(largest, 2 * inner)
        for step, (index, (first, last)) in enumerate(_busy(where)):
            count = last - first
            tokens = torch.index_select(x, 0, where.token[first:last], out=taken[:count])
            y_rows = torch.index_select(y_grad, 0, where.token[first:last], out=y_taken[:count])
            inputs = saved[step] if saved else torch.mm(tokens, gate_up[index].t())
            torch.mm(y_rows, down[index], out=product_grad[:count])
            scale = pair_weight[first:last].unsqueeze(-1)
            for piece in _pieces(count):
                pair_weight_grad[first:last][piece] = _swiglu_backward(
                    inputs[piece], product_grad[piece], scale[piece], product[piece], inputs_grad[piece]
                )
            if gate_up_grad is not None:
                torch.mm(inputs_grad[:count].t(), tokens, out=gate_up_grad[index])
            if down_grad is not None:
                torch.mm(y_rows.mul_(scale).t(), product[:count], out=down_grad[index])
            if x_needed:
                rows[first:last] = torch.mm(inputs_grad[:count], gate_up[index], out=taken[:count])
        x_grad = combine(rows, where, None).to(x.dtype) if x_needed else None
        weight_grad = rows.new_zeros(weight.numel()).index_copy_(0, where.pair, pair_weight_grad)
        return x_grad, None, weight_grad.view_as(weight).to(weight.dtype), gate_up_grad, down_grad, None


def _swiglu_backward(inputs: Tensor, grad: Tensor, scale: Tensor, product: Tensor, inputs_grad: Tensor) -> Tensor:
    """From [z u], h̃ and w to h (into ``product``), [z̄ ū] (into ``inputs_grad``) and w̄ (returned); overwrites h̃."""
    z, u = inputs.chunk(2, dim=-1)
    z_grad, u_grad = inputs_grad.chunk(2, dim=-1)
    activated = F.silu(z)
    torch.mul(activated, u, out=product)
    weight_grad = torch.linalg.vecdot(grad.float(), product.float())
    grad.mul_(scale)
    torch.mul(grad, activated, out=u_grad)
    torch.ops.aten.silu_backward.grad_input(grad.mul_(u), z, grad_input=z_grad)
    return weight_grad


def _loads(where: Dispatch) -> list[int]:
    return [last - first for first, last in zip(where.bounds, where.bounds[1:], strict=False)]


def _largest(where: Dispatch) -> int:
    return max(_loads(where), default=0)


def _busy(where: Dispatch) -> list[tuple[int, tuple[int, int]]]:
    """The experts that have pairs, with their first and the one past their last."""
    spans = zip(where.bounds, where.bounds[1:], strict=False)
    return [(index, (first, last)) for index, (first, last) in enumerate(spans) if first < last]


def _pieces(count: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]


def _suits(x: Tensor, *_: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


BACKEND = Backend("fused", fused_ffn, why_not, suits=_suits)
RECOMPUTE = Backend("fused_recompute", fused_recompute_ffn, why_not, suits=lambda *_: False)
