"""How a fresh model starts, and that all of it can learn."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from moepp.model import MoEPPForCausalLM

from .factory import fill, tiny_config, tokens

STD = 0.05
WIDE = {"hidden_size": 64, "num_constant_experts": 6, "initializer_range": STD}


def fresh(seed: int = 0, **changes: object) -> MoEPPForCausalLM:
    torch.manual_seed(seed)
    return MoEPPForCausalLM(tiny_config(**changes))


def pooled_std(model: MoEPPForCausalLM, *endings: str) -> float:
    values = [p.detach().flatten() for name, p in model.named_parameters() if name.endswith(endings)]
    return torch.cat(values).std().item()


@pytest.mark.parametrize("gate", ["linear", "tanh_mlp"])
def test_each_matrix_has_its_standard_deviation(gate: str) -> None:
    model = fresh(**WIDE, gate=gate, constant_init_std=0.5)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert (p == 1).all(), name
        elif name.endswith("residual.weight"):
            assert not p.any(), name
        else:
            expected = 0.5 if name.endswith(".constant") else STD
            # Three times the standard error of a standard deviation over that many numbers.
            assert p.std().item() == pytest.approx(expected, rel=3 / (2 * p.numel()) ** 0.5), name
            assert abs(p.mean().item()) < 4 * expected / p.numel() ** 0.5, name


def test_residual_matrices_start_at_their_own_standard_deviation() -> None:
    model = fresh(**WIDE, residual_init_std=0.3)
    assert pooled_std(model, "residual.weight") == pytest.approx(0.3, rel=0.2)
    assert pooled_std(model, "router.weight") == pytest.approx(STD, rel=0.1)


def test_padding_embedding_starts_at_zero() -> None:
    model = fresh()
    assert not model.model.embed_tokens.weight[model.config.pad_token_id].any()


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    one, same, other = (dict(fresh(seed).named_parameters()) for seed in (1, 1, 2))
    for name, parameter in one.items():
        assert torch.equal(parameter, same[name]), name
        if parameter.dim() > 1 and not name.endswith("residual.weight"):
            assert not torch.equal(parameter, other[name]), name


def test_from_config_starts_like_the_constructor() -> None:
    torch.manual_seed(3)
    auto = dict(AutoModelForCausalLM.from_config(tiny_config()).named_parameters())
    for name, parameter in fresh(3).named_parameters():
        assert torch.equal(parameter, auto[name]), name


@pytest.mark.parametrize("gate", ["linear", "tanh_mlp"])
@pytest.mark.parametrize("filled", [False, True], ids=["fresh", "filled"])
def test_every_parameter_receives_a_gradient(gate: str, filled: bool) -> None:
    """Fresh means W^g = 0, which must not keep it there. Every expert is chosen by some of 256 tokens."""
    model = fresh(gate=gate)
    if filled:
        fill(model)
    ids = tokens(8, 32)
    out = model.train()(ids, labels=ids, output_routing=True)
    assert all(layer.expert.unique().tolist() == list(range(8)) for layer in out.routing)
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # Per expert where experts are stacked: none of them is left out.
        stacked = ".experts." in name or ".zero_computation." in name
        parts = parameter.grad.flatten(1) if stacked else parameter.grad.flatten().unsqueeze(0)
        assert parts.isfinite().all(), name
        assert parts.any(dim=1).all(), name


@pytest.mark.parametrize("gate", ["linear", "tanh_mlp"])
def test_first_layer_has_no_residual_matrix_and_the_others_have(gate: str) -> None:
    routers = [layer.mlp.router for layer in fresh(gate=gate).model.layers]
    assert [router.residual is None for router in routers] == [True, False, False]
    assert not any("layers.0.mlp.router.residual" in name for name in fresh(gate=gate).state_dict())
    assert all(layer.mlp.router.residual is None for layer in fresh(gating_residual=False).model.layers)
