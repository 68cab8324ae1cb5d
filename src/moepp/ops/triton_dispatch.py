"""Which rows are which expert's, without a sort and without asking the host.

N FFN experts, P = T·K assignments, numbered p = t·K + k.

A counting sort by expert in three launches: each block of assignments is counted per expert, one cumulative sum over
(expert, block) gives every block its place in every expert's range, and each assignment takes its place behind the
earlier ones of its block. Places are in the order of the tokens, the same in every run. An id outside [0, N) gets none.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_gemm import ceil_div, power_of_two


class Dispatch(NamedTuple):
    """Rows are the assignments to FFN experts, expert after expert; their number is known to the device alone."""

    order: Tensor
    """(P,) int32: row -> assignment. What lies past the last row is never written."""
    position: Tensor
    """(P,) int32: assignment -> row; -1 where the id is no FFN expert's."""
    offsets: Tensor
    """(N + 1,) int32: expert e has the rows from ``offsets[e]`` to ``offsets[e + 1]``."""


@triton.jit
@no_type_check  # annotations in kernels are Triton's
def _one_hot(expert, P, N: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = tl.load(expert + p, mask=p < P, other=-1)
    columns = tl.arange(0, EXPERTS)[None, :]
    return p, mine, ((mine[:, None] == columns) & (columns < N)).to(tl.int32)


@triton.jit
@no_type_check
def _count_kernel(expert, counts, P, N: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    _, _, chosen = _one_hot(expert, P, N, EXPERTS, BLOCK)
    column = tl.arange(0, EXPERTS)
    address = counts + column * tl.num_programs(0) + tl.program_id(0)
    tl.store(address, tl.sum(chosen, axis=0), mask=column < N)


@triton.jit
@no_type_check
def _place_kernel(
    expert, ends, order, position, offsets, P, N: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr
):
    p, mine, chosen = _one_hot(expert, P, N, EXPERTS, BLOCK)
    valid = (mine >= 0) & (mine < N)
    earlier = tl.sum((tl.cumsum(chosen, axis=0) - 1) * chosen, axis=1)
    before = mine * tl.num_programs(0) + tl.program_id(0) - 1  # the cumulative sum's entry before this block's
    start = tl.load(ends + before, mask=valid & (before >= 0), other=0)
    place = start + earlier
    tl.store(position + p, tl.where(valid, place, -1), mask=p < P)
    tl.store(order + place, p, mask=valid)
    if tl.program_id(0) == 0:
        # EXPERTS is more than N, so that the last offset, the number of rows, has a lane.
        column = tl.arange(0, EXPERTS)
        last = column * tl.num_programs(0) - 1
        total = tl.load(ends + last, mask=(column > 0) & (column <= N), other=0)
        tl.store(offsets + column, total, mask=column <= N)


def dispatch(expert: Tensor, num_experts: int) -> Dispatch:
    """Sorts (T, K) ids by expert; ids outside ``[0, num_experts)`` are left out."""
    expert = expert.contiguous()
    assignments = expert.numel()

    def table(size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32, device=expert.device)

    found = Dispatch(table(assignments), table(assignments), table(num_experts + 1))
    width = power_of_two(num_experts + 1)
    block = max(16, min(256, 8192 // width))  # the one-hot table of a block has to fit into registers
    blocks = ceil_div(assignments, block)
    counts = table(num_experts * blocks)
    sizes = {"P": assignments, "N": num_experts, "EXPERTS": width, "BLOCK": block}
    _count_kernel[(blocks,)](expert, counts, **sizes)
    ends = counts.cumsum(0, dtype=torch.int32)
    _place_kernel[(blocks,)](expert, ends, *found, **sizes)
    return found
