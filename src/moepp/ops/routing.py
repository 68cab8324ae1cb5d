"""The router's choice as one Triton kernel, for :class:`moepp.Router`: everything that follows from the logits.

T tokens, E all experts, K top-k.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .triton_experts import why_not_here


def can_fuse_routing(logits: Tensor) -> bool:
    """Whether :func:`fused_routing` runs on these logits. It computes in float32."""
    return logits.dtype == torch.float32 and why_not_here(logits) is None


def fused_routing(
    logits: Float[Tensor, "T E"],
    selection_bias: Float[Tensor, "E"] | None,
    *,
    top_k: int,
    combine: str,
    zeros: range,
    logits_std: float | None,
) -> tuple[Float[Tensor, "T E"], Int[Tensor, "T K"], Float[Tensor, "T K"], Bool[Tensor, "T K"]]:
    """Probabilities, chosen experts, weights and which are kept, as :class:`moepp.Router` defines them.

    Args:
        zeros: the zero experts' ids.
    """
    bias = None if selection_bias is None else selection_bias.detach().to(logits)
    return _route(logits, bias, top_k, combine, zeros.start, zeros.stop, logits_std)


@torch.library.custom_op("moepp::triton_route", mutates_args=())
def _route(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    combine: str,
    first_zero: int,
    last_zero: int,
    logits_std: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from .triton_routing import route

    if not len(logits):
        return _route_shapes(logits, bias, top_k, combine, first_zero, last_zero, logits_std)
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(logits):
        return route(logits.contiguous(), bias, top_k, combine, (first_zero, last_zero), logits_std)


@_route.register_fake
def _route_shapes(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    combine: str,
    first_zero: int,
    last_zero: int,
    logits_std: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen = (logits.shape[0], top_k)
    expert, weight, kept = (logits.new_empty(chosen, dtype=dtype) for dtype in (torch.int64, logits.dtype, torch.bool))
    return logits.new_empty(logits.shape), expert, weight, kept


@torch.library.custom_op("moepp::triton_route_backward", mutates_args=())
def _route_backward(
    grad_probs: Tensor,
    grad_weight: Tensor,
    logits: Tensor,
    probs: Tensor,
    expert: Tensor,
    weight: Tensor,
    kept: Tensor,
    combine: str,
    first_zero: int,
    last_zero: int,
    logits_std: float | None,
) -> Tensor:
    from .triton_routing import route_backward

    if not len(logits):
        return torch.empty_like(logits)
    grads = grad_probs.contiguous(), grad_weight.contiguous()
    chosen = probs, expert, weight, kept
    with torch.cuda.device_of(logits):
        return route_backward(*grads, logits.contiguous(), chosen, combine, (first_zero, last_zero), logits_std)


@_route_backward.register_fake
def _route_backward_shapes(
    grad_probs: Tensor,
    grad_weight: Tensor,
    logits: Tensor,
    probs: Tensor,
    expert: Tensor,
    weight: Tensor,
    kept: Tensor,
    combine: str,
    first_zero: int,
    last_zero: int,
    logits_std: float | None,
) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    logits, _, _, *rule = inputs
    ctx.save_for_backward(logits, *output)
    ctx.rule = rule
    ctx.mark_non_differentiable(output[1], output[3])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    logits, probs, expert, weight, kept = ctx.saved_tensors
    grad_probs, _, grad_weight, _ = grads  # None where nobody used the output
    grad_probs = torch.zeros_like(probs) if grad_probs is None else grad_probs
    grad_weight = torch.zeros_like(weight) if grad_weight is None else grad_weight
    return _route_backward(grad_probs, grad_weight, logits, probs, expert, weight, kept, *ctx.rule), *[None] * 6


_route.register_autograd(_backward, setup_context=_setup_context)
