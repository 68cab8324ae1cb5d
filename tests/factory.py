"""Layers with known parameters. Tests never rely on how a fresh layer is initialised: they fill it."""

import torch
from torch import Tensor

from moepp import MoE, MoEConfig


def random_moe(
    config: MoEConfig,
    *,
    seed: int = 0,
    first: bool = False,
    backend: str = "reference",
    dtype: torch.dtype = torch.float64,
) -> MoE:
    """A layer in training mode whose every parameter is normal: nothing, W^g and v included, is left at 0 or tiny."""
    generator = torch.Generator().manual_seed(seed)
    moe = MoE(config, first=first, backend=backend).to(dtype)
    with torch.no_grad():
        for parameter in moe.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            parameter.copy_(values)
        # Logits of a useful spread, so that choices and probabilities differ between tokens.
        moe.router.weight.mul_(2.0)
    return moe.train()


def obedient_moe(config: MoEConfig, *, backend: str = "reference") -> MoE:
    """A float64 layer whose logits are exactly the ``previous`` it is given: W = 0 and W^g = identity.

    With ``previous = log(p)`` a test prescribes the probabilities of every token.
    """
    assert config.gating_residual
    moe = random_moe(config, backend=backend)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.residual.weight.copy_(torch.eye(config.layout().num_experts))
    return moe


def fill(parameter: Tensor, values: list) -> None:
    """Sets a parameter to numbers written in a test."""
    with torch.no_grad():
        parameter.copy_(torch.tensor(values, dtype=parameter.dtype).reshape(parameter.shape))


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers that depend on nothing but the seed; drawn in float64, so that dtypes see the same numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
