"""A model's routing on held-out text."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..layers import RoutingStats
from ..model import MoEPPForCausalLM


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
                mask = batch.get("attention_mask")
                flat = None if mask is None else mask.reshape(-1).bool()
                routings = model(**batch, output_routing=True, use_cache=False).routing
                counts = [RoutingStats.of(routing, mask=flat) for routing in routings]
                totals = [a + b for a, b in zip(totals, counts, strict=True)] if totals else counts
    finally:
        model.train(training)
    return totals
