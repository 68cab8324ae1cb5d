"""Which rows each expert takes and where each token finds its results: the bookkeeping of the CPU backends.

T tokens, D hidden, N FFN experts, K top-k, P pairs of a token and an FFN expert, T·K of them at most.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Dispatch(NamedTuple):
    """P pairs sorted by expert, in token order within an expert."""

    pair: Tensor
    """(P,) index of each sorted pair among the T·K."""
    token: Tensor
    """(P,) its token."""
    bounds: list[int]
    """(N + 1) Expert i has the sorted pairs ``bounds[i]`` to ``bounds[i + 1]``."""
    place: Tensor
    """(T, K) where a token finds its results among the sorted pairs; P, one past them, for what no FFN expert takes."""


def dispatch(expert: Tensor, num_experts: int) -> Dispatch:
    """Sorts (T, K) ids; those outside ``[0, N)`` are left out. Waits for the device, so for CPU tensors."""
    flat = expert.flatten()
    group, order = torch.where((flat >= 0) & (flat < num_experts), flat, num_experts).sort(stable=True)
    bounds = torch.searchsorted(group, torch.arange(num_experts + 1, dtype=group.dtype, device=group.device)).tolist()
    pair = order[: bounds[-1]]
    place = torch.full_like(flat, len(pair))
    place[pair] = torch.arange(len(pair), dtype=place.dtype, device=place.device)
    return Dispatch(pair, pair // expert.shape[1], bounds, place.view(expert.shape))


def result_rows(where: Dispatch, width: int) -> Tensor:
    """(P + 1, width) float32 memory for the pairs' results; the last row is 0, the rest the caller's to write."""
    rows = torch.empty(len(where.pair) + 1, width, dtype=torch.float32, device=where.pair.device)
    rows[-1] = 0.0
    return rows


def combine(rows: Tensor, where: Dispatch, weight: Tensor | None) -> Tensor:
    """(T, D) float32: each token's sum over its results, times the (T, K) weights unless they are None."""
    if weight is not None:
        weight = torch.where(where.place < len(where.pair), weight, 0.0).to(rows.dtype)
    return F.embedding_bag(where.place, rows, per_sample_weights=weight, mode="sum")
