"""Softmax, top-k and the combine rule in one pass over a token's logits, and the same backward.

T tokens, E all experts, K top-k.

A row of logits stays in registers from reading to writing. The K largest are found one after the other, which for a K
of a few is less work than sorting E scores, and gives ties to the lower index by construction.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_gemm import INTERPRETED, ceil_div, power_of_two

COMBINES = ("probabilities", "renormalize", "renormalize_nonzero", "softmax_topk")
_RENORMALIZE, _NONZERO, _SOFTMAX = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
@no_type_check  # annotations in kernels are Triton's
def _deviation(row, real, E: tl.constexpr):
    """The row minus its mean, and its unbiased standard deviation or, where that is 0, 1."""
    mean = tl.sum(tl.where(real, row, 0.0), axis=1) / E
    centred = tl.where(real, row - mean[:, None], 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, axis=1) / max(E - 1, 1))
    return centred, tl.where(deviation > 0, deviation, 1.0)


@triton.jit
@no_type_check
def _route_kernel(
    logits,
    bias,
    probs,
    expert,
    weight,
    kept,
    logits_std,
    T,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    FIRST_ZERO: tl.constexpr,
    LAST_ZERO: tl.constexpr,
    COMBINE: tl.constexpr,
    NORMALISED: tl.constexpr,
    BIASED: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, EXPERTS)[None, :]
    slot = tl.arange(0, WIDTH)[None, :]
    exists = (t < T)[:, None]
    real = column < E
    element = t.to(tl.int64)[:, None] * E + column
    scores = tl.load(logits + element, mask=exists & real, other=0.0)
    if NORMALISED:
        _, deviation = _deviation(scores, real, E)
        scores = scores / deviation[:, None] * logits_std
    shifted = tl.where(real, scores, float("-inf"))
    exponential = tl.exp(shifted - tl.max(shifted, axis=1)[:, None])
    prob = exponential / tl.sum(exponential, axis=1)[:, None]
    tl.store(probs + element, prob, mask=exists & real)

    ranking = scores
    if BIASED:
        ranking += tl.load(bias + column, mask=real, other=0.0)
    order = tl.where(ranking == ranking, ranking, float("inf"))  # a NaN ranks first, as in a sort
    free = real & (order == order)
    index = tl.zeros((BLOCK_T, WIDTH), dtype=tl.int32)
    alive = slot < 0
    value = tl.zeros((BLOCK_T, WIDTH), dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        best = tl.max(tl.where(free, order, float("-inf")), axis=1)
        found = tl.min(tl.where(free & (order == best[:, None]), column, EXPERTS), axis=1)
        chosen = column == found[:, None]
        free = free & (column != found[:, None])
        enabled = tl.sum(tl.where(chosen, ranking, 0.0), axis=1) > float("-inf")
        amount = tl.sum(tl.where(chosen, scores if COMBINE == _SOFTMAX else prob, 0.0), axis=1)
        mine = slot == k
        index = tl.where(mine, found[:, None], index)
        alive = alive | (mine & enabled[:, None])
        value = tl.where(mine, amount[:, None], value)

    if COMBINE == _SOFTMAX:
        largest = tl.max(tl.where(alive, value, float("-inf")), axis=1)
        result = tl.where(alive, tl.exp(value - largest[:, None]), 0.0)
    elif COMBINE == _NONZERO:
        result = tl.where(alive & ((index < FIRST_ZERO) | (index >= LAST_ZERO)), value, 0.0)
    else:
        result = tl.where(alive, value, 0.0)
    if COMBINE > 0:
        total = tl.sum(result, axis=1)
        result = result / tl.where(total > 0, total, 1.0)[:, None]
    stored = exists & (slot < TOP_K)
    assignment = t[:, None] * TOP_K + slot
    tl.store(expert + assignment, index.to(tl.int64), mask=stored)
    tl.store(kept + assignment, alive.to(tl.int8), mask=stored)
    tl.store(weight + assignment, result, mask=stored)


@triton.jit
@no_type_check
def _route_backward_kernel(
    grad_probs,
    grad_weight,
    logits,
    probs,
    expert,
    weight,
    kept,
    out,
    logits_std,
    T,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    FIRST_ZERO: tl.constexpr,
    LAST_ZERO: tl.constexpr,
    COMBINE: tl.constexpr,
    NORMALISED: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, EXPERTS)[None, :]
    slot = tl.arange(0, WIDTH)[None, :]
    exists = (t < T)[:, None]
    real = exists & (column < E)
    taken = exists & (slot < TOP_K)
    element = t.to(tl.int64)[:, None] * E + column
    assignment = t[:, None] * TOP_K + slot
    prob = tl.load(probs + element, mask=real, other=0.0)
    grad_prob = tl.load(grad_probs + element, mask=real, other=0.0)
    index = tl.load(expert + assignment, mask=taken, other=0).to(tl.int32)
    counts = tl.load(kept + assignment, mask=taken, other=0) != 0
    if COMBINE == _NONZERO:
        counts = counts & ((index < FIRST_ZERO) | (index >= LAST_ZERO))
    grad = tl.where(counts, tl.load(grad_weight + assignment, mask=taken, other=0.0), 0.0)
    if COMBINE > 0:
        mine = tl.load(weight + assignment, mask=taken, other=0.0)
        mean = tl.sum(mine * grad, axis=1)[:, None]
        if COMBINE == _SOFTMAX:
            grad = mine * (grad - mean)
        else:
            value = tl.load(probs + t.to(tl.int64)[:, None] * E + index, mask=counts, other=0.0)
            total = tl.sum(value, axis=1)[:, None]
            grad = tl.where(counts, (grad - mean) / tl.where(total > 0, total, 1.0), 0.0)
    scattered = tl.zeros((BLOCK_T, EXPERTS), dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        where = tl.sum(tl.where(slot == k, index, 0), axis=1)[:, None]
        amount = tl.sum(tl.where(slot == k, grad, 0.0), axis=1)[:, None]
        scattered += tl.where(column == where, amount, 0.0)
    if COMBINE != _SOFTMAX:
        grad_prob += scattered
    result = prob * (grad_prob - tl.sum(prob * grad_prob, axis=1)[:, None])
    if COMBINE == _SOFTMAX:
        result += scattered
    if NORMALISED:
        row = tl.load(logits + element, mask=real, other=0.0)
        centred, deviation = _deviation(row, column < E, E)
        # d(row / s)/d row: the deviation s depends on every logit, by centred / ((E - 1) s).
        slope = tl.sum(result * row, axis=1) / (deviation * deviation * deviation * max(E - 1, 1))
        result = logits_std * (result / deviation[:, None] - centred * slope[:, None])
    tl.store(out + element, result, mask=real)


def _sizes(probs: Tensor, top_k: int) -> tuple[tuple[int], dict[str, int]]:
    tokens, experts = probs.shape
    width = power_of_two(experts)
    rows = 64 if INTERPRETED else max(1, 1024 // width)
    sizes = {"T": tokens, "E": experts, "TOP_K": top_k, "EXPERTS": width, "WIDTH": power_of_two(top_k)}
    return (ceil_div(tokens, rows),), {**sizes, "BLOCK_T": rows}


def route(
    logits: Tensor, bias: Tensor | None, top_k: int, combine: str, zeros: tuple[int, int], logits_std: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities, experts, weights and what is kept, from contiguous float32 logits."""
    probs = torch.empty_like(logits)
    expert = torch.empty(len(logits), top_k, dtype=torch.int64, device=logits.device)
    weight, kept = torch.empty_like(expert, dtype=torch.float32), torch.empty_like(expert, dtype=torch.bool)
    grid, sizes = _sizes(logits, top_k)
    _route_kernel[grid](
        logits,
        bias,
        probs,
        expert,
        weight,
        kept.view(torch.int8),
        1.0 if logits_std is None else logits_std,
        FIRST_ZERO=zeros[0],
        LAST_ZERO=zeros[1],
        COMBINE=COMBINES.index(combine),
        NORMALISED=logits_std is not None,
        BIASED=bias is not None,
        **sizes,
    )
    return probs, expert, weight, kept


def route_backward(
    grad_probs: Tensor,
    grad_weight: Tensor,
    logits: Tensor,
    chosen: tuple[Tensor, Tensor, Tensor, Tensor],
    combine: str,
    zeros: tuple[int, int],
    logits_std: float | None,
) -> Tensor:
    """The gradient of the logits, from those of probabilities and weights and what :func:`route` returned."""
    probs, expert, weight, kept = chosen
    out = torch.empty_like(probs)
    grid, sizes = _sizes(probs, expert.shape[1])
    _route_backward_kernel[grid](
        grad_probs,
        grad_weight,
        logits,
        probs,
        expert,
        weight,
        kept.view(torch.int8),
        out,
        1.0 if logits_std is None else logits_std,
        FIRST_ZERO=zeros[0],
        LAST_ZERO=zeros[1],
        COMBINE=COMBINES.index(combine),
        NORMALISED=logits_std is not None,
        **sizes,
    )
    return out
