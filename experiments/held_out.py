"""Held-out text through a trained model, as it is or with its routing tampered with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moepp.layers import RoutingStats
from moepp.model import MoEPPForCausalLM

_BATCH = 16


def spread(blocks: Sequence[Tensor], count: int) -> Tensor:
    """So many of the blocks, evenly spaced, or all where there are fewer."""
    count = min(count, len(blocks))
    return torch.stack([blocks[index * len(blocks) // count] for index in range(count)])


def measure(
    model: MoEPPForCausalLM, blocks: Mapping[str, Tensor], **how: Any
) -> tuple[dict[str, float], list[RoutingStats]]:
    """Nats per token by source, and each layer's counts over all of them.

    Args:
        blocks: (blocks, tokens) by source.
        how: more arguments of the model's forward.
    """
    losses, totals = {}, []
    with torch.inference_mode():
        for source, all_ in blocks.items():
            nats = 0.0
            for batch in all_.to(model.device).split(_BATCH):
                out = model(input_ids=batch, labels=batch, use_cache=False, **how)
                nats += float(out.lm_loss) * len(batch)
                stats = out.routing_stats
                totals = [a + b for a, b in zip(totals, stats, strict=True)] if totals else list(stats)
            losses[source] = nats / len(all_)
    return losses, totals
