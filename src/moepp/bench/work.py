"""What benchmarks time: layers, their tokens, and where the tokens go.

T tokens, D hidden, F intermediate, N FFN experts, E all experts, K top-k.

Two kinds of routing, never to be mixed: *synthetic*, in which every expert has exactly the load that tau's balance
implies, and *learned*, what a trained model chose.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import MoEConfig
from ..layers import FFNExperts, MoE, QuantizedExperts, Routing
from ..ops.quantized import SCHEMES


@dataclass(frozen=True)
class LayerWork:
    """One layer, its tokens and where they go."""

    layer: MoE
    x: Tensor
    routing: Routing
    previous: Tensor | None = None
    """The previous layer's logits (Eq. 6)."""
    prescribed: bool = False
    """Whether the whole layer is made to follow ``routing``, after its router has chosen for itself."""

    def forward(self, layer: MoE, x: Tensor) -> Tensor:
        """The whole layer, router included; ``layer`` is this one or the same on another backend."""
        return layer(x, self.previous, edit=self._prescribe if self.prescribed else None)[0]

    def _prescribe(self, routing: Routing) -> Routing:
        expert = self.routing.expert
        return routing._replace(expert=expert, weight=routing.probs.gather(-1, expert), kept=self.routing.kept)

    @property
    def ffn_assignments(self) -> int:
        """(token, FFN expert) pairs that are computed, of the experts that the router chose."""
        return int(self._ffn().sum())

    @property
    def ffn_per_token(self) -> float:
        """Routed FFN experts that a token goes through, on average; shared ones are not counted."""
        return self.ffn_assignments / len(self.x)

    @property
    def ffn_flops(self) -> float:
        """Of the FFN experts, routed and shared, forward: three products of D by F a token and expert.

        A multiply-add counts 2.
        """
        config = self.layer.config
        computed = self.ffn_assignments + config.num_shared_experts * len(self.x)
        return 2.0 * 3 * config.hidden_size * config.intermediate_size * computed

    @property
    def touched_weights(self) -> int:
        """Those of the FFN experts that have a token, and of the shared ones."""
        config = self.layer.config
        touched = self.routing.expert[self._ffn()].unique().numel() + config.num_shared_experts
        return 3 * config.hidden_size * config.intermediate_size * touched

    def _ffn(self) -> Tensor:
        return self.routing.kept & (self.routing.expert < self.layer.config.num_ffn_experts)


def run_experts(work: Sequence[LayerWork]) -> list[Tensor]:
    """Runs each layer's experts once, forward: FFN, zero-computation and shared experts, the router left out."""
    with torch.inference_mode():
        return [item.layer.apply_experts(item.x, item.routing) for item in work]


def capture_work(model: nn.Module, **inputs: Any) -> list[LayerWork]:
    """The work that a model's layers do on a batch, in evaluation, at the routing it chooses."""
    found: list[LayerWork] = []

    def record(layer: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Routing]) -> None:
        assert isinstance(layer, MoE)
        found.append(LayerWork(layer, args[0].flatten(0, -2), output[1], args[1]))

    hooks = [module.register_forward_hook(record) for module in model.modules() if isinstance(module, MoE)]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference mode, whose tensors no backward pass may use
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
        found.append(dataclasses.replace(item, routing=to_device(routing, item.x.device), prescribed=True))
    return found


def exact_share_routing(config: MoEConfig, tokens: int, seed: int) -> Routing:
    """A routing in which each expert has its share of tau's balance (Table 1), up to rounding; weights are 1/K.

    A token chooses an expert once: where a share is more than all tokens, the rest of it goes to the other experts. On
    the CPU, the same on every machine.
    """
    layout = config.layout()
    share = _shares(config)
    order = (share < 1).int().argsort(stable=True)  # experts that every token has come first: no rounding splits them
    edges = (share[order].cumsum(0) * tokens).round().long()
    sorted_ids = torch.repeat_interleave(order, torch.diff(edges, prepend=edges.new_zeros(1)))
    # Dealt out in order, a token's K ids are T apart: different experts, as none has more than T places.
    dealt = sorted_ids.view(config.top_k, tokens).T
    generator = torch.Generator().manual_seed(seed)
    expert = dealt[torch.randperm(tokens, generator=generator)].contiguous()
    probs = torch.full((tokens, layout.num_experts), 1 / layout.num_experts)
    weight = torch.full(expert.shape, 1 / config.top_k)
    return Routing(probs.log(), probs, expert, weight, torch.ones_like(expert, dtype=torch.bool))


def _shares(config: MoEConfig) -> Tensor:
    """(E,) how much of all tokens each expert gets, at most 1, in tau's balance as far as that leaves it; sum is K."""
    layout = config.layout()
    eta = torch.tensor([config.tau] * layout.ffn + [1.0] * layout.num_zero_computation, dtype=torch.float64)
    full = torch.zeros_like(eta, dtype=torch.bool)
    while True:
        rest = eta.where(~full, 0.0)
        share = (rest / rest.sum() * (config.top_k - full.sum())).where(~full, 1.0)
        if not (share[~full] >= 1).any():
            return share
        full |= share >= 1


def twin_layers(config: MoEConfig, count: int, *, dtype: torch.dtype, device: str) -> tuple[list[MoE], list[MoE]]:
    """So many MoE++ layers and their vanilla twins, which share the FFN experts' weights.

    Weights are normal with the variance that keeps a product's size: none is 0 or tiny.
    """
    generator = torch.Generator(device).manual_seed(0)
    ours, twins = [], []
    for _ in range(count):
        layer = _on_meta(config).to(dtype).to_empty(device=device).eval()
        _fill(layer, generator)
        ours.append(layer)
        twins.append(vanilla_twin(layer))
    return ours, twins


def vanilla_twin(layer: MoE) -> MoE:
    """A vanilla layer with the same FFN and shared experts, sharing their weights, and a router of its own."""
    weight = layer.router.weight
    twin = _on_meta(layer.config.vanilla()).to(weight.dtype)
    twin.router.to_empty(device=weight.device)
    _fill(twin.router, torch.Generator(weight.device).manual_seed(1))
    twin.experts, twin.shared_experts = layer.experts, layer.shared_experts
    return twin.eval()


def spread_work(layers: Sequence[MoE], tau: float | None, tokens: int, *, steps: int = 1) -> list[LayerWork]:
    """Synthetic work: ``steps`` times through all the layers with T new tokens each time.

    Where T is small each pass has another share of FFN assignments; all of them together have tau's exactly.
    """
    parameter = layers[0].router.weight
    config = layers[0].config if tau is None else dataclasses.replace(layers[0].config, tau=tau)
    count = steps * len(layers)
    routing = exact_share_routing(config, count * tokens, seed=0)
    device = parameter.device
    generator = torch.Generator(device).manual_seed(1)
    found = []
    for index in range(count):
        part = Routing(*(field[index * tokens : (index + 1) * tokens] for field in routing))
        x = torch.randn(tokens, config.hidden_size, generator=generator, device=device).to(parameter.dtype)
        previous = torch.randn(tokens, config.layout().num_experts, generator=generator, device=device)
        layer, part = layers[index % len(layers)], to_device(part, device)
        found.append(LayerWork(layer, x, part, previous, prescribed=True))
    return found


def on_backend(layer: MoE, backend: str) -> MoE:
    """The same layer with its FFN experts on another backend, sharing all parameters, or quantised by a scheme."""
    with torch.device("meta"):
        twin = MoE(layer.config, backend="auto" if backend in SCHEMES else backend)
    twin.router, twin.zero_computation = layer.router, layer.zero_computation
    for name in ("experts", "shared_experts"):
        ours, experts = getattr(layer, name), getattr(twin, name)
        if experts is not None:
            assert isinstance(ours, FFNExperts)
            experts.gate_up_proj, experts.down_proj = ours.gate_up_proj, ours.down_proj
            if backend in SCHEMES:
                setattr(twin, name, QuantizedExperts(experts, backend))
    return twin.train(layer.training)


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)


def _on_meta(config: MoEConfig) -> MoE:
    with torch.device("meta"):
        return MoE(config)


def to_device(routing: Routing, device: torch.device) -> Routing:
    """The same decisions on another device."""
    return Routing(*(field.to(device) for field in routing))
