"""Rows that expert parallelism exchanges: (token, FFN expert) pairs and nothing else. Exact, where loads are tau's.

A token's row leaves in the dtype of the products, and its result comes back in it; in the backward pass the gradients
of both go the other way.
"""

from dataclasses import dataclass

from ..model import MoEPPConfig
from .layout import Batch, Sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """One layer and one micro-batch of one process, all processes and experts being loaded alike."""

    rows: float
    """Pairs of its tokens with FFN experts, and as many that it computes for others; its own count in both."""
    away: float
    """Of those, the ones whose expert is another process's."""
    row_bytes: int
    """There and back."""


def exchange(config: MoEPPConfig, batch: Batch, sizes: Sizes) -> Exchange:
    """At the FFN share that tau's balance implies (Table 1); nothing is then dropped for a capacity factor above 1."""
    rows = batch.tokens * config.top_k * config.moe.ffn_share()
    row = 2 * config.hidden_size * (2 if batch.bf16 else 4)
    return Exchange(rows=rows, away=rows * (1 - 1 / sizes.ep), row_bytes=row)
