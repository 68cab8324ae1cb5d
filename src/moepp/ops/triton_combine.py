"""Per-token sums: the weighted combine with the zero-computation term in the same pass, and that term's gradient.

T tokens, D hidden, K top-k, P = T·K assignments, C constant experts.

A token gathers its rows; no two programs write to one place, so there are no atomics and every run gives the same bits.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense import DenseTerm
from .triton_gemm import INTERPRETED, ceil_div, power_of_two, steps


@triton.jit
@no_type_check  # annotations in kernels are Triton's
def _combine_kernel(
    rows,
    position,
    weight,
    x,
    scale,
    shift,
    constant,
    out,
    T,
    D,
    TOP_K: tl.constexpr,
    CONSTANTS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    real = t < T
    stored = real[:, None] & (d < D)[None, :]
    element = t.to(tl.int64)[:, None] * D + d[None, :]
    total = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        row = tl.load(position + t * TOP_K + k, mask=real, other=-1)
        computed = (row >= 0)[:, None] & (d < D)[None, :]
        value = tl.load(rows + row.to(tl.int64)[:, None] * D + d[None, :], mask=computed, other=0.0).to(tl.float32)
        if WEIGHTED:
            value *= tl.load(weight + t * TOP_K + k, mask=row >= 0, other=0.0).to(tl.float32)[:, None]
        total += value
    if SCALED:
        token = tl.load(x + element, mask=stored, other=0.0).to(tl.float32)
        total += token * tl.load(scale + t, mask=real, other=0.0)[:, None]
    for c in tl.static_range(CONSTANTS):
        vector = tl.load(constant + c * D + d, mask=d < D, other=0.0).to(tl.float32)
        total += tl.load(shift + t * CONSTANTS + c, mask=real, other=0.0)[:, None] * vector[None, :]
    tl.store(out + element, total, mask=stored)


@triton.jit
@no_type_check
def _dense_backward_kernel(
    grad,
    x,
    shift,
    constant,
    grad_scale,
    grad_shift,
    grad_constant,
    T,
    D,
    CONSTANTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.arange(0, WIDTH)
    real = t < T
    has = (c < CONSTANTS)[:, None]
    mine = real[:, None] & (c < CONSTANTS)[None, :]
    share = t[:, None] * CONSTANTS + c[None, :]
    if CONSTANTS > 0:
        shifts = tl.load(shift + share, mask=mine, other=0.0)
    scale_sum = tl.zeros((BLOCK_T,), dtype=tl.float32)
    shift_sum = tl.zeros((BLOCK_T, WIDTH), dtype=tl.float32)
    for start in steps(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = real[:, None] & (d < D)[None, :]
        element = t.to(tl.int64)[:, None] * D + d[None, :]
        dy = tl.load(grad + element, mask=inside, other=0.0).to(tl.float32)
        scale_sum += tl.sum(dy * tl.load(x + element, mask=inside, other=0.0).to(tl.float32), axis=1)
        if CONSTANTS > 0:
            vector = c[:, None] * D + d[None, :]
            stored = has & (d < D)[None, :]
            v = tl.load(constant + vector, mask=stored, other=0.0).to(tl.float32)
            shift_sum += tl.sum(dy[:, None, :] * v[None, :, :], axis=2)
            share_of_block = tl.sum(shifts[:, :, None] * dy[:, None, :], axis=0)
            block = grad_constant + tl.program_id(0).to(tl.int64) * CONSTANTS * D
            tl.store(block + vector, share_of_block, mask=stored)
    tl.store(grad_scale + t, scale_sum, mask=real)
    if CONSTANTS > 0:
        tl.store(grad_shift + share, shift_sum, mask=mine)


def combine(
    rows: Tensor, position: Tensor, weight: Tensor | None, x: Tensor, dense: DenseTerm | None, *, top_k: int
) -> Tensor:
    """``sum_k weight · rows[position] + x · scale + shift @ constant`` in x's dtype; no weight is a weight of 1."""
    tokens, hidden = x.shape
    out = torch.empty_like(x)
    scale, shift, constant = (None, None, None) if dense is None else dense
    block_t, block_d = (64, 64) if INTERPRETED else (4, min(512, power_of_two(hidden)))
    _combine_kernel[(ceil_div(tokens, block_t), ceil_div(hidden, block_d))](
        rows,
        position,
        weight,
        x,
        scale,
        shift,
        constant,
        out,
        tokens,
        hidden,
        TOP_K=top_k,
        CONSTANTS=0 if constant is None else len(constant),
        WEIGHTED=weight is not None,
        SCALED=scale is not None,
        BLOCK_T=block_t,
        BLOCK_D=block_d,
    )
    return out


def dense_backward(grad: Tensor, x: Tensor, dense: DenseTerm) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of scale, shift and constant, which share one reading of ``grad``."""
    scale, shift, constant = dense
    tokens, hidden = x.shape
    constants = 0 if constant is None else len(constant)
    width = power_of_two(max(1, constants))
    block_t = 64 if INTERPRETED else 32
    blocks = ceil_div(tokens, block_t)
    grad_scale = torch.empty_like(scale)
    grad_shift = None if shift is None else torch.empty_like(shift)
    partial = None if constant is None else scale.new_empty(blocks, constants, hidden)
    _dense_backward_kernel[(blocks,)](
        grad,
        x,
        shift,
        constant,
        grad_scale,
        grad_shift,
        partial,
        tokens,
        hidden,
        CONSTANTS=constants,
        WIDTH=width,
        BLOCK_T=block_t,
        BLOCK_D=max(16, 128 // width),
    )
    grad_constant = None if partial is None or constant is None else partial.sum(0).to(constant.dtype)
    return grad_scale, grad_shift, grad_constant
