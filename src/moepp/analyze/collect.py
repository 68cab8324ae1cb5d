"""A model's routing on held-out text."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..layers import RoutingStats
from ..model import MoEPPForCausalLM, real_tokens


def collect_stats(model: MoEPPForCausalLM, batches: Iterable[Mapping[str, Tensor]]) -> list[RoutingStats]:
    """Each layer's counts over all batches, in evaluation.

    Args:
        batches: keyword arguments of the model's forward, without labels.
    """
    totals: list[RoutingStats] = []
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                mask = real_tokens(batch.get("attention_mask"), batch["input_ids"].shape[1])
                routings = model(**batch, output_routing=True, use_cache=False).routing
                counts = [RoutingStats.of(routing, mask=mask) for routing in routings]
                totals = [a + b for a, b in zip(totals, counts, strict=True)] if totals else counts
    finally:
        model.train(training)
    return totals
