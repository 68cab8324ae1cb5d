"""Counts of what a router did, which add up over batches, layers and processes.

T tokens, E all experts, K top-k.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..config import EXPERT_TYPES, ExpertLayout, ExpertType
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
            mask: True for tokens that are not padding; the others count nowhere. It may lie on another device.
        """
        tokens, experts = routing.probs.shape
        chosen = (routing.expert >= 0) & (routing.expert < experts)
        probs = routing.probs
        count = torch.full((), tokens, device=probs.device)
        if mask is not None:
            mask = mask.to(probs.device)
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

    def ffn_per_token(self, layout: ExpertLayout) -> float:
        """Routed FFN experts that a token went through, on average; dropped and shared ones don't count."""
        return _ratio(self.kept[: layout.ffn].sum(), self.tokens)

    def shares(self, layout: ExpertLayout) -> dict[ExpertType, float]:
        """Each expert type's share of the router's choices; they sum to 1."""
        return {kind: _ratio(_of(self.assigned, layout, kind), self.assigned.sum()) for kind in EXPERT_TYPES}

    def dropped(self, layout: ExpertLayout) -> dict[ExpertType, float]:
        """The share of each expert type's assignments that capacity dropped."""
        lost = self.assigned - self.kept
        return {kind: _ratio(_of(lost, layout, kind), _of(self.assigned, layout, kind)) for kind in EXPERT_TYPES}

    def ffn_imbalance(self, layout: ExpertLayout) -> float:
        """The busiest FFN expert's choices over the FFN experts' mean; 1 is even, N is one expert doing it all."""
        load = self.assigned[: layout.ffn]
        return _ratio(load.max() * layout.ffn, load.sum())


def _of(counts: Tensor, layout: ExpertLayout, kind: ExpertType) -> Tensor:
    indices = layout.indices(kind)
    return counts[indices.start : indices.stop].sum()


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part) / max(float(whole), 1.0)


def _histogram(expert: Tensor, selected: Tensor, experts: int) -> Tensor:
    """(E,) counts of the selected ids, without a device synchronisation."""
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=expert.device)
    ids = torch.where(selected, expert, experts).flatten()
    return counts.scatter_add(0, ids, torch.ones_like(ids))[:experts]
