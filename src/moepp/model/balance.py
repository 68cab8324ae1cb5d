"""Over which tokens Eq. 7 takes f, the share of tokens that chose each expert: ``balance_scope``."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from ..layers import RoutingStats, balance_loss_of
from .configuration_moepp import MoEPPConfig


class GlobalCounts:
    """The choices of all processes' tokens and of all micro-batches of one optimizer step, as far as they have run.

    f carries no gradient and P does, so that a micro-batch's loss needs the others' f alone: one small sum over
    processes for each forward pass. The first micro-batch of a step cannot know the later ones' choices; it takes f
    over the processes' first ones. (Qiu et al., arXiv 2501.11873, do the same.)
    """

    def __init__(self) -> None:
        self._counted: Tensor | None = None

    def reset(self) -> None:
        """A new optimizer step begins."""
        self._counted = None

    def __call__(self, stats: Sequence[RoutingStats]) -> tuple[RoutingStats, ...]:
        """Adds one forward pass's counts, one for each layer; returns the sums so far."""
        # The first layer's device: layers may lie on several.
        home = stats[0].assigned.device
        counts = torch.stack([torch.cat([s.tokens.reshape(1).to(home), s.assigned.to(home)]) for s in stats])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        self._counted = counts if self._counted is None else self._counted + counts
        return tuple(
            layer._replace(tokens=row[0].to(layer.tokens.device), assigned=row[1:].to(layer.assigned.device))
            for layer, row in zip(stats, self._counted, strict=True)
        )


def balance_losses(
    stats: Sequence[RoutingStats],
    config: MoEPPConfig,
    *,
    device: torch.device,
    training: bool,
    global_counts: GlobalCounts | None = None,
) -> Float[Tensor, "layers"]:
    """Eq. 7 of each layer, from one forward pass's counts, on ``device``.

    Args:
        training: whether ``balance_scope`` matters; an evaluated batch is judged by itself.
        global_counts: remembers the step's earlier micro-batches; None takes f over the processes' running ones.
    """
    chosen = stats
    if training and config.balance_scope == "global":
        chosen = (global_counts or GlobalCounts())(stats)
    terms = [balance_loss_of(own, config.moe, chosen=all_) for own, all_ in zip(stats, chosen, strict=True)]
    return torch.stack([term.to(device) for term in terms])
