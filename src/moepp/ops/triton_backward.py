"""The backward products: through down and SwiGLU to the halves, and the weights' gradients.

T tokens, D hidden, F intermediate, N FFN experts, K top-k, P = T·K assignments.

The SwiGLU product is recomputed from its halves while the gradient that multiplies it is still in registers, which
also gives the combine weights' gradient, ``dy · (down @ product) = (down.T @ dy) · product``, without the
experts' rows.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_dispatch import Dispatch
from .triton_gemm import (
    CONFIGS,
    DEEP_CONFIGS,
    WIDEST_SPLIT,
    bucket,
    ceil_div,
    count_tiles,
    dot,
    locate,
    persistent_grid,
    power_of_two,
    prune,
    steps,
)


@triton.jit
@no_type_check  # annotations in kernels are Triton's
def _through_swiglu(total, halves, grad_halves, weighted, factor, first, end, first_column, F):
    """Writes what one tile of ``down.T @ dy`` becomes; returns its rows' products with the SwiGLU product."""
    local = tl.arange(0, total.shape[0])[:, None]
    column = first_column + tl.arange(0, total.shape[1])[None, :]
    stored = (first + local < end) & (column < F)
    # 64-bit numbers where a tile begins, 32-bit ones within it, which take half the registers.
    start = first.to(tl.int64) * F
    half = local * 2 * F + column
    gate = tl.load(halves + 2 * start + half, mask=stored, other=0.0).to(tl.float32)
    up = tl.load(halves + 2 * start + F + half, mask=stored, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    product = silu * up  # 0 outside, where `total` belongs to another row or column
    summed = tl.sum(total * product, axis=1)
    tl.store(weighted + start + local * F + column, product * factor[:, None], mask=stored)
    total *= factor[:, None]
    tl.store(grad_halves + 2 * start + F + half, total * silu, mask=stored)
    tl.store(grad_halves + 2 * start + half, total * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), mask=stored)
    return summed


# Different block sizes write different parts of `partial`: what tuning left there must not be added up.
@triton.autotune(
    CONFIGS, key=["D", "F", "BUCKET"], prune_configs_by={"early_config_prune": prune}, reset_to_zero=["partial"]
)
@triton.jit
@no_type_check
def _swiglu_backward_kernel(
    grad,
    w,
    halves,
    weight,
    grad_halves,
    weighted,
    partial,
    order,
    offsets,
    P,
    D,
    F,
    TOP_K: tl.constexpr,
    N: tl.constexpr,
    EXPERTS: tl.constexpr,
    BUCKET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles = count_tiles(offsets, N, EXPERTS, BLOCK_M)
    column_tiles = tl.cdiv(F, BLOCK_N)
    for tile in steps(tl.program_id(0), tl.sum(tiles) * column_tiles, tl.num_programs(0)):
        expert, first, end, column_tile = locate(tile, tiles, column_tiles, offsets, EXPERTS, BLOCK_M)
        row = first + tl.arange(0, BLOCK_M)
        column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        assignment = tl.load(order + tl.minimum(row, end - 1))
        left = grad + (assignment // TOP_K).to(tl.int64)[:, None] * D + k[None, :]
        right = w + expert * D * F + (column % F)[None, :] + k[:, None] * F
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in steps(0, D, BLOCK_K):
            inside = k < D - start
            total = dot(
                tl.load(left, mask=inside[None, :], other=0.0), tl.load(right, mask=inside[:, None], other=0.0), total
            )
            left += BLOCK_K
            right += BLOCK_K * F
        # In two halves: one tile of six matrices does not fit into registers.
        low, high = tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        factor = tl.load(weight + assignment).to(tl.float32)
        column = column_tile * BLOCK_N
        low_sum = _through_swiglu(low, halves, grad_halves, weighted, factor, first, end, column, F)
        column += BLOCK_N // 2
        high_sum = _through_swiglu(high, halves, grad_halves, weighted, factor, first, end, column, F)
        tl.store(partial + column_tile.to(tl.int64) * P + assignment, low_sum + high_sum, mask=row < end)


@triton.autotune(DEEP_CONFIGS, key=["HEIGHT", "WIDTH", "BUCKET"], prune_configs_by={"early_config_prune": prune})
@triton.jit
@no_type_check
def _weight_gradient_kernel(
    a,
    b,
    w,
    order,
    offsets,
    HEIGHT,
    WIDTH,
    TOP_K: tl.constexpr,
    GATHER_A: tl.constexpr,
    GATHER_B: tl.constexpr,
    BUCKET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    down = tl.cdiv(HEIGHT, BLOCK_M)
    tile = tl.program_id(0) % (down * tl.cdiv(WIDTH, BLOCK_N))
    expert = tl.program_id(0) // (down * tl.cdiv(WIDTH, BLOCK_N))
    m = tile % down * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile // down * BLOCK_N + tl.arange(0, BLOCK_N)
    end = tl.load(offsets + expert + 1)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in steps(tl.load(offsets + expert), end, BLOCK_K):
        row = start + tl.arange(0, BLOCK_K)
        exists = (row < end)[:, None]
        row_a = row
        row_b = row
        if GATHER_A or GATHER_B:
            token = tl.load(order + row, mask=row < end, other=0) // TOP_K
            if GATHER_A:
                row_a = token
            if GATHER_B:
                row_b = token
        left = tl.load(a + row_a.to(tl.int64)[:, None] * HEIGHT + (m % HEIGHT)[None, :], mask=exists, other=0.0)
        right = tl.load(b + row_b.to(tl.int64)[:, None] * WIDTH + (n % WIDTH)[None, :], mask=exists, other=0.0)
        total = dot(tl.trans(left), right, total)
    element = expert.to(tl.int64) * HEIGHT * WIDTH + m[:, None] * WIDTH + n[None, :]
    tl.store(w + element, total, mask=(m < HEIGHT)[:, None] & (n < WIDTH)[None, :])


def swiglu_backward(
    grad: Tensor, down: Tensor, halves: Tensor, weight: Tensor, rows: Dispatch
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the halves (P, 2F) and of the weights (T, K), and the weighted SwiGLU product (P, F)."""
    num_experts, hidden, inner = down.shape
    assignments = weight.numel()
    grad_halves = torch.empty_like(halves)
    weighted = halves.new_empty(assignments, inner)
    # One summand per assignment and tile of columns, added up in a fixed order; 0 where an id is no FFN expert's.
    partial = weight.new_zeros(ceil_div(inner, WIDEST_SPLIT), assignments, dtype=torch.float32)
    _swiglu_backward_kernel[persistent_grid(grad, assignments, num_experts, inner)](
        grad,
        down,
        halves,
        weight,
        grad_halves,
        weighted,
        partial,
        rows.order,
        rows.offsets,
        assignments,
        hidden,
        inner,
        TOP_K=weight.shape[1],
        N=num_experts,
        EXPERTS=power_of_two(num_experts),
        BUCKET=bucket(assignments, num_experts),
    )
    return grad_halves, partial.sum(0).view_as(weight).to(weight.dtype), weighted


def weight_gradient(a: Tensor, b: Tensor, like: Tensor, rows: Dispatch, *, top_k: int, gather: str) -> Tensor:
    """``sum of a[row] ⊗ b[row]`` over each expert's rows, shaped as ``like``; every element is written once.

    Args:
        gather: which of ``"a"`` and ``"b"`` has a row per token instead of one per assignment.
    """
    num_experts, height, width = like.shape
    out = torch.empty_like(like, memory_format=torch.contiguous_format)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (num_experts * ceil_div(height, meta["BLOCK_M"]) * ceil_div(width, meta["BLOCK_N"]),)

    _weight_gradient_kernel[grid](
        a,
        b,
        out,
        rows.order,
        rows.offsets,
        height,
        width,
        TOP_K=top_k,
        GATHER_A=gather == "a",
        GATHER_B=gather == "b",
        BUCKET=128,  # the tile's sides are the matrix's, however few the rows
    )
    return out
