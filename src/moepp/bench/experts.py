"""What the experts alone cost: FFN and zero-computation experts together, the router left out, as the paper measures.

T tokens, D hidden, K top-k.

Two kinds of routing, never to be mixed: *synthetic*, in which every expert has exactly the load that tau's balance
implies, and *learned*, what a trained model chose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import MoEConfig
from ..layers import MoE, Routing


@dataclass(frozen=True)
class LayerWork:
    """One layer, its tokens and where they go."""

    layer: MoE
    x: Tensor
    routing: Routing

    @property
    def ffn_per_token(self) -> float:
        """FFN experts that a token goes through, on average."""
        chosen = self.routing.kept & (self.routing.expert < self.layer.config.num_ffn_experts)
        return float(chosen.sum()) / len(self.x)


def run_experts(work: Sequence[LayerWork]) -> None:
    """Runs each layer's experts once, forward."""
    with torch.inference_mode():
        for item in work:
            item.layer.apply_experts(item.x, item.routing)


def capture_work(model: nn.Module, **inputs: Any) -> list[LayerWork]:
    """The work that a model's layers do on a batch, in evaluation, at the routing it chooses."""
    found: list[LayerWork] = []

    def record(layer: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Routing]) -> None:
        assert isinstance(layer, MoE)
        found.append(LayerWork(layer, args[0].flatten(0, -2), output[1]))

    hooks = [module.register_forward_hook(record) for module in model.modules() if isinstance(module, MoE)]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            model(**inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found


def synthetic_work(work: Sequence[LayerWork], *, seed: int = 0) -> list[LayerWork]:
    """The same layers and tokens at the routing of :func:`exact_share_routing`."""
    found = []
    for index, item in enumerate(work):
        routing = exact_share_routing(item.layer.config, len(item.x), seed + index)
        found.append(LayerWork(item.layer, item.x, Routing(*(field.to(item.x.device) for field in routing))))
    return found


def exact_share_routing(config: MoEConfig, tokens: int, seed: int) -> Routing:
    """A routing in which each expert has its share of tau's balance (Table 1), up to rounding; weights are 1/K.

    On the CPU, the same on every machine.
    """
    layout = config.layout()
    eta = torch.tensor([config.tau] * layout.ffn + [1.0] * layout.num_zero_computation, dtype=torch.float64)
    edges = (eta.cumsum(0) / eta.sum() * tokens * config.top_k).round().long()
    sorted_ids = torch.repeat_interleave(
        torch.arange(layout.num_experts), torch.diff(edges, prepend=edges.new_zeros(1))
    )
    # Dealt out in order, a token's K ids are T apart: different experts, as none has more than T places.
    dealt = sorted_ids.view(config.top_k, tokens).T
    generator = torch.Generator().manual_seed(seed)
    expert = dealt[torch.randperm(tokens, generator=generator)].contiguous()
    probs = torch.full((tokens, layout.num_experts), 1 / layout.num_experts)
    weight = torch.full(expert.shape, 1 / config.top_k)
    return Routing(probs.log(), probs, expert, weight, torch.ones_like(expert, dtype=torch.bool))
