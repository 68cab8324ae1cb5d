"""What the grouped matrix products share: who computes which tile, the product of two tiles, and block sizes to try.

N FFN experts, P = T·K assignments, R <= P rows, those of them that are to FFN experts.

The number of tiles is known to the device alone. A fixed number of programs walks through them, so that the grid
depends on nothing that a host would have to wait for, and rows that do not exist cost nothing, not even an empty
program: at small tau most of the P rows that there could be do not exist.
"""

import functools
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

INTERPRETED: bool = knobs.runtime.interpret
_UPCAST = tl.constexpr(INTERPRETED)  # the interpreter multiplies bfloat16's bits as if they were integers
BUCKETS = (16, 64, 128)


def ceil_div(number: int, divisor: int) -> int:
    """The number of blocks of ``divisor`` that hold ``number``."""
    return -(-number // divisor)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``: Triton's ranges have such lengths."""
    return 1 << (number - 1).bit_length()


def _interpreted_range(start: Any, end: Any, step: Any) -> range:
    """The interpreter's numbers are arrays of one element, which numpy from 2.4 on doesn't take for an index."""
    return range(
        *(int(bound.handle.data.item()) if hasattr(bound, "handle") else bound for bound in (start, end, step))
    )


steps = _interpreted_range if INTERPRETED else tl.range


@triton.jit
@no_type_check  # annotations in kernels are Triton's
def dot(a, b, accumulator):
    """accumulator + a @ b in float32; float32 operands keep all their bits."""
    if _UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
@no_type_check
def count_tiles(offsets, N: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """(EXPERTS,) how many tiles of rows each expert has."""
    e = tl.arange(0, EXPERTS)
    start = tl.load(offsets + e, mask=e < N, other=0)
    end = tl.load(offsets + e + 1, mask=e < N, other=0)
    return (end - start + BLOCK_M - 1) // BLOCK_M


@triton.jit
@no_type_check
def locate(tile, tiles, column_tiles, offsets, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr = 8):
    """The expert, first row, end of the expert's rows and column tile of a tile.

    Tiles are numbered so that those which run at the same time share rows and weights: within a group of GROUP tiles
    of rows, the rows vary first.
    """
    row_tiles = tl.sum(tiles)
    first = (tile // (GROUP * column_tiles)) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    inside = tile % (GROUP * column_tiles)
    row_tile = first + inside % height
    e = tl.arange(0, EXPERTS)
    expert = tl.sum((tl.cumsum(tiles, axis=0) <= row_tile).to(tl.int32))
    earlier = tl.sum(tl.where(e < expert, tiles, 0))
    start = tl.load(offsets + expert)
    return expert.to(tl.int64), start + (row_tile - earlier) * BLOCK_M, tl.load(offsets + expert + 1), inside // height


def _config(m: int, n: int, k: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)


def _configs(*tensor_cores: triton.Config) -> list[triton.Config]:
    """Block sizes to try; the last is for exact float32 products, which have no tensor cores to feed."""
    return [_config(64, 32, 16, 1, 1)] if INTERPRETED else [*tensor_cores, _config(64, 64, 32, 4, 2)]


_SHORT = (_config(16, 64, 128, 4, 4), _config(16, 128, 64, 4, 4), _config(64, 64, 64, 4, 4), _config(64, 128, 64, 4, 4))
_TALL = (_config(128, 64, 64, 4, 4), _config(128, 128, 64, 8, 3), _config(128, 128, 64, 8, 4))
_WIDE = (_config(128, 256, 64, 8, 3), _config(128, 256, 64, 8, 4))

# Two accumulators, gate and up, or a long epilogue leave no registers for wide tiles.
CONFIGS = _configs(*_SHORT, *_TALL)
WIDE_CONFIGS = _configs(*_SHORT, *_TALL, *_WIDE)
# Rows that are found through a table are fetched a stage late: more stages for as much in flight.
DEEP_CONFIGS = _configs(_config(128, 128, 64, 8, 5), _config(128, 256, 64, 8, 3), _config(128, 256, 64, 8, 5))
WIDEST_SPLIT = min(config.kwargs["BLOCK_N"] for config in CONFIGS)


def prune(configs: list[triton.Config], arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """The block sizes worth trying for these tensors: as tall as the bucket of the experts' mean number of rows."""
    if arguments["w"].element_size() == 4:
        return configs[-1:]
    return [config for config in configs[:-1] if config.kwargs["BLOCK_M"] == constants["BUCKET"]]


def bucket(assignments: int, num_experts: int) -> int:
    """The height of tiles for experts that have the mean number of rows."""
    mean = assignments / num_experts
    return next((height for height in BUCKETS if mean <= height), BUCKETS[-1])


@functools.cache
def _processors(device: torch.device) -> int:
    return 2 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def persistent_grid(x: Tensor, assignments: int, num_experts: int, columns: int):
    """As many programs as run at once, or fewer where there cannot be as many tiles."""

    def grid(meta: dict[str, Any]) -> tuple[int]:
        row_tiles = ceil_div(assignments, meta["BLOCK_M"]) + num_experts
        tiles = row_tiles * ceil_div(columns, meta["BLOCK_N"])
        at_once = 1 if meta["BLOCK_M"] * meta["BLOCK_N"] >= 128 * 128 else 2
        return (min(tiles, at_once * _processors(x.device)),)

    return grid
