"""Losses of one layer's routing. Sum them over layers: pooled, layers collapsed onto different experts look balanced.

T tokens, E all experts, K top-k.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..config import MoEConfig
from .routing import Routing
from .stats import RoutingStats


def balance_loss(routing: Routing, config: MoEConfig, *, mask: Bool[Tensor, "T"] | None = None) -> Float[Tensor, ""]:
    """The heterogeneous load-balance loss of one layer (Eq. 7): Σ_i η_i f_i P_i.

    f_i is the share of tokens that chose expert i (summing to K; dropped ones count: the router chose them), P_i the
    mean probability of expert i; η is 1 for FFN experts and tau for zero-computation experts. There is no factor E and
    no 1/K.

    Args:
        mask: True for tokens that are not padding; the others count nowhere. 0 if there is no such token.
    """
    return balance_loss_of(RoutingStats.of(routing, mask=mask), config)


def balance_loss_of(stats: RoutingStats, config: MoEConfig, *, chosen: RoutingStats | None = None) -> Float[Tensor, ""]:
    """Eq. 7 from counts that the caller has already, see :func:`balance_loss`.

    Args:
        chosen: counts over more tokens, to take f from; P is always the mean over those of ``stats``.
    """
    chosen = stats if chosen is None else chosen
    f = chosen.assigned.to(stats.prob_sum) / chosen.tokens.clamp_min(1)
    product = f * (stats.prob_sum / stats.tokens.clamp_min(1))
    ffn = config.layout().ffn
    return product[:ffn].sum() + config.tau * product[ffn:].sum()


def z_loss(routing: Routing, *, mask: Bool[Tensor, "T"] | None = None) -> Float[Tensor, ""]:
    """The mean over tokens of logsumexp(logits)², which keeps logits from drifting (ST-MoE, arXiv 2202.08906)."""
    squares = routing.logits.logsumexp(dim=-1).square()
    if mask is None:
        return squares.mean()
    return torch.where(mask, squares, 0.0).sum() / mask.sum().clamp_min(1)
