"""Parts of a layer that somebody put something around: adapters wrap them, offloading and parallel plans replace their
forward. Their weights are right only while the part is called."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moepp import MoEConfig

from ..factory import randn, random_moe
from ..tolerances import assert_close

PARTS = ("router", "router.hidden", "router.residual", "zero_computation", "experts")
CONFIG = MoEConfig(
    hidden_size=16, intermediate_size=8, num_ffn_experts=4, gate="tanh_mlp", input_scale=0.5, capacity_factor=None
)


class Lent:
    """A part's own parameters: NaN but while they are lent."""

    def __init__(self, part: nn.Module) -> None:
        self.parameters = list(part.parameters(recurse=False))
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self._write([torch.full_like(value, torch.nan) for value in self.values])

    def _write(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def call(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        self._write(self.values)
        out = forward(*args, **kwargs)
        self._write([torch.full_like(value, torch.nan) for value in self.values])
        return out


class Wrapper(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.lent, self.part = Lent(part), part

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.lent.call(self.part, *args, **kwargs)


def wrapped(part: nn.Module) -> nn.Module:
    return Wrapper(part)


def replaced(part: nn.Module) -> nn.Module:
    """Takes what transformers' experts take, and no dense term with it."""
    lent, real = Lent(part), part.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        assert len(args) <= 3
        return lent.call(real, *args, **kwargs)

    part.forward = forward
    return part


@pytest.mark.parametrize("way", [wrapped, replaced])
@pytest.mark.parametrize("names", [*((name,) for name in PARTS), PARTS[::-1]], ids=str)
def test_a_part_with_something_around_it_is_called_and_not_read_past_it(names: tuple[str, ...], way: Any) -> None:
    plain, layer = random_moe(CONFIG), random_moe(CONFIG)
    x, previous = randn(50, 16, seed=1), randn(50, CONFIG.layout().num_experts, seed=2)
    for name in sorted(names, reverse=True):  # the router's parts before the router
        parent, _, child = name.rpartition(".")
        owner: nn.Module = layer.get_submodule(parent)
        setattr(owner, child, way(getattr(owner, child)))
    with torch.no_grad():
        (y, routing), (expected, chosen) = layer(x, previous), plain(x, previous)
    assert_close(y, expected)
    assert_close(routing.logits, chosen.logits)
