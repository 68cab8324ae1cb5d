"""Heterogeneous capacity (Eq. 8): how many assignments an expert keeps, and which.

T tokens, E all experts, K top-k.

The paper's T must mean assignments: the capacities sum to gamma times it while K·T assignments are made, so read as
tokens it would drop at least 45 % of a top-2 layer's assignments.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..config import MoEConfig
from ..ops.places import places
from .routing import Routing

# Capacities are short decimals times integers: without this, 1.1 / 10 · 400 · .75 = 33.00000000000001 would become 34.
_FUZZ = 1e-9


def expert_capacity(config: MoEConfig, assignments: int | Tensor, factor: float) -> Float[Tensor, "E"]:
    """C_i of Eq. 8, rounded up and at least 1, for each of the layer's experts (float64, on ``assignments``' device).

    Args:
        assignments: K times the number of tokens that are not padding; a 0-dimensional tensor stays on its device.
        factor: gamma.
    """
    layout = config.layout()
    share = factor / (config.tau * layout.ffn + layout.num_zero_computation)
    exact = share * torch.as_tensor(assignments).double()
    ffn, zero_computation = ((c * (1 - _FUZZ)).ceil().clamp_min(1) for c in (config.tau * exact, exact))
    return torch.cat([ffn.expand(layout.ffn), zero_computation.expand(layout.num_zero_computation)])


def keep_mask(
    routing: Routing,
    config: MoEConfig,
    factor: float,
    *,
    mask: Bool[Tensor, "T"] | None = None,
    backend: str = "auto",
) -> Bool[Tensor, "T K"]:
    """Which assignments stay when no expert keeps more than its capacity.

    A full expert loses its least probable assignments first (``drop_policy="probability"``; of equals, the later
    token's), or its last ones (``"position"``). Assignments that are not kept to begin with, of padding tokens, and
    to ids outside ``[0, E)`` take no place.

    Args:
        factor: gamma of Eq. 8.
        mask: True for tokens that are not padding.
        backend: the experts', see :func:`moepp.ops.places.places`.
    """
    tokens, experts = routing.probs.shape
    top_k = routing.expert.shape[1]
    valid = (routing.expert >= 0) & (routing.expert < experts)
    candidate = routing.kept & valid
    real = torch.full((), tokens, device=candidate.device)  # made there: copying it would wait for the device
    if mask is not None:
        candidate = candidate & mask.unsqueeze(-1)
        real = mask.sum()
    capacity = expert_capacity(config, top_k * real, factor)

    expert = torch.where(candidate, routing.expert, experts).flatten()  # one more group, for what takes no place
    if config.drop_policy == "probability":
        chosen = routing.probs.gather(-1, routing.expert.clamp(0, experts - 1)).flatten()
        order = chosen.sort(descending=True, stable=True).indices
        ranked = places(expert[order], experts + 1, backend=backend)
        place = torch.empty_like(ranked).scatter(0, order, ranked)
    else:
        place = places(expert, experts + 1, backend=backend)
    limit = torch.cat([capacity, capacity.new_zeros(1)])
    return (place < limit[expert]).view_as(routing.kept)


def apply_keep(routing: Routing, kept: Bool[Tensor, "T K"]) -> Routing:
    """Drops the assignments outside ``kept``: weight 0, the others as they were."""
    return routing._replace(weight=routing.weight.masked_fill(~kept, 0.0), kept=kept)
