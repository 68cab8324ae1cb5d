"""Counts of what a router did, which add up over batches, layers and processes.

T tokens, E all experts, K top-k.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .routing import Routing


class RoutingStats(NamedTuple):
    """``RoutingStats.of(a ++ b) == RoutingStats.of(a) + RoutingStats.of(b)``."""

    tokens: Int[Tensor, ""]
    """Tokens that are not padding."""
    assigned: Int[Tensor, "E"]
    """How many of them chose each expert."""
    kept: Int[Tensor, "E"]
    """How many of those assignments capacity kept."""
    prob_sum: Float[Tensor, "E"]
    """Sum of their probabilities; carries the router's gradient."""

    @classmethod
    def of(cls, routing: Routing, *, mask: Bool[Tensor, "T"] | None = None) -> "RoutingStats":
        """Counts one layer's routing.

        Args:
            mask: True for tokens that are not padding; the others count nowhere.
        """
        tokens, experts = routing.probs.shape
        chosen = (routing.expert >= 0) & (routing.expert < experts)
        probs = routing.probs
        count = torch.full((), tokens, device=probs.device)
        if mask is not None:
            chosen = chosen & mask.unsqueeze(-1)
            probs = torch.where(mask.unsqueeze(-1), probs, 0.0)
            count = mask.sum()
        return cls(
            tokens=count,
            assigned=_histogram(routing.expert, chosen, experts),
            kept=_histogram(routing.expert, chosen & routing.kept, experts),
            prob_sum=probs.sum(dim=0),
        )

    def __add__(self, other: "RoutingStats") -> "RoutingStats":  # pyright: ignore[reportIncompatibleMethodOverride]
        return RoutingStats(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def detach(self) -> "RoutingStats":
        """The same counts without the router's gradient, for keeping."""
        return RoutingStats(*(field.detach() for field in self))


def _histogram(expert: Tensor, selected: Tensor, experts: int) -> Tensor:
    """(E,) counts of the selected ids, without a device synchronisation."""
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=expert.device)
    ids = torch.where(selected, expert, experts).flatten()
    return counts.scatter_add(0, ids, torch.ones_like(ids))[:experts]
