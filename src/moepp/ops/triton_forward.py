"""The forward products: tokens gathered into gate and up with SwiGLU behind, and rows times a matrix per expert.

T tokens, D hidden, F intermediate, N FFN experts, K top-k, P = T·K assignments.
"""

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from .triton_dispatch import Dispatch
from .triton_gemm import (
    CONFIGS,
    WIDE_CONFIGS,
    bucket,
    count_tiles,
    dot,
    locate,
    persistent_grid,
    power_of_two,
    prune,
    steps,
)


@triton.autotune(CONFIGS, key=["D", "F", "BUCKET"], prune_configs_by={"early_config_prune": prune})
@triton.jit
@no_type_check  # annotations in kernels are Triton's
def _swiglu_kernel(
    x,
    w,
    product,
    halves,
    order,
    offsets,
    D,
    F,
    TOP_K: tl.constexpr,
    N: tl.constexpr,
    EXPERTS: tl.constexpr,
    SAVE: tl.constexpr,
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
        # Rows and columns past the end repeat one that exists instead of being masked: they are not stored.
        token = tl.load(order + tl.minimum(row, end - 1)).to(tl.int64) // TOP_K
        a = token[:, None] * D + k[None, :]
        b = (column % F)[None, :] * D + k[:, None]
        gate = w + expert * 2 * F * D
        gate_sum = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        up_sum = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in steps(0, D, BLOCK_K):
            inside = k < D - start
            rows = tl.load(x + start + a, mask=inside[None, :], other=0.0)
            gate_sum = dot(rows, tl.load(gate + start + b, mask=inside[:, None], other=0.0), gate_sum)
            up_sum = dot(rows, tl.load(gate + F * D + start + b, mask=inside[:, None], other=0.0), up_sum)
        stored = (row < end)[:, None] & (column < F)[None, :]
        # 64-bit numbers where a tile begins, 32-bit ones within it, which take half the registers.
        within = tl.arange(0, BLOCK_M)[:, None] * F + column[None, :]
        tl.store(product + first.to(tl.int64) * F + within, gate_sum * tl.sigmoid(gate_sum) * up_sum, mask=stored)
        if SAVE:
            half = halves + first.to(tl.int64) * 2 * F + (tl.arange(0, BLOCK_M)[:, None] * 2 * F + column[None, :])
            tl.store(half, gate_sum, mask=stored)
            tl.store(half + F, up_sum, mask=stored)


@triton.autotune(WIDE_CONFIGS, key=["COLUMNS", "DEPTH", "BUCKET"], prune_configs_by={"early_config_prune": prune})
@triton.jit
@no_type_check
def _rows_kernel(
    a,
    w,
    out,
    offsets,
    COLUMNS,
    DEPTH,
    column_stride,
    depth_stride,
    N: tl.constexpr,
    EXPERTS: tl.constexpr,
    BUCKET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles = count_tiles(offsets, N, EXPERTS, BLOCK_M)
    column_tiles = tl.cdiv(COLUMNS, BLOCK_N)
    for tile in steps(tl.program_id(0), tl.sum(tiles) * column_tiles, tl.num_programs(0)):
        expert, first, end, column_tile = locate(tile, tiles, column_tiles, offsets, EXPERTS, BLOCK_M)
        row = first + tl.arange(0, BLOCK_M)
        column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        left = a + tl.minimum(row, end - 1).to(tl.int64)[:, None] * DEPTH + k[None, :]
        right = w + expert * COLUMNS * DEPTH
        right += (column % COLUMNS)[None, :] * column_stride + k[:, None] * depth_stride
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in steps(0, DEPTH, BLOCK_K):
            inside = k < DEPTH - start
            total = dot(
                tl.load(left, mask=inside[None, :], other=0.0), tl.load(right, mask=inside[:, None], other=0.0), total
            )
            left += BLOCK_K
            right += BLOCK_K * depth_stride
        stored = (row < end)[:, None] & (column < COLUMNS)[None, :]
        within = tl.arange(0, BLOCK_M)[:, None] * COLUMNS + column[None, :]
        tl.store(out + first.to(tl.int64) * COLUMNS + within, total, mask=stored)


def swiglu(x: Tensor, gate_up: Tensor, rows: Dispatch, *, save: bool) -> tuple[Tensor, Tensor]:
    """``silu(gate) * up`` (P, F) of every row's token, and if ``save`` its halves (P, 2F) for backward."""
    num_experts, width, hidden = gate_up.shape
    assignments = rows.order.numel()
    product = x.new_empty(assignments, width // 2)
    halves = x.new_empty(assignments if save else 0, width)
    _swiglu_kernel[persistent_grid(x, assignments, num_experts, width // 2)](
        x,
        gate_up,
        product,
        halves,
        rows.order,
        rows.offsets,
        hidden,
        width // 2,
        TOP_K=assignments // len(x),
        N=num_experts,
        EXPERTS=power_of_two(num_experts),
        SAVE=save,
        BUCKET=bucket(assignments, num_experts),
    )
    return product, halves


def multiply_rows(a: Tensor, w: Tensor, rows: Dispatch, *, transposed: bool) -> Tensor:
    """Each row of ``a`` times its expert's matrix: ``w[e] @ a``, or ``w[e].T @ a`` if ``transposed``."""
    num_experts, out_width, depth = w.shape
    strides = w.stride()[1:]
    if transposed:
        out_width, depth, strides = depth, out_width, strides[::-1]
    out = a.new_empty(len(a), out_width)
    _rows_kernel[persistent_grid(a, len(a), num_experts, out_width)](
        a,
        w,
        out,
        rows.offsets,
        out_width,
        depth,
        *strides,
        N=num_experts,
        EXPERTS=power_of_two(num_experts),
        BUCKET=bucket(len(a), num_experts),
    )
    return out
