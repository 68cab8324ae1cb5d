"""The whole layer against the per-token oracle: outputs, routing and every gradient."""

import dataclasses

import pytest
import torch

from moepp import MoE, MoEConfig, balance_loss

from .. import oracle
from ..factory import randn, random_moe
from ..tolerances import assert_close

TOKENS = 24
BASE = MoEConfig(hidden_size=8, intermediate_size=12, num_ffn_experts=4, capacity_factor=None)
TIGHT = {"capacity_factor": 0.6}  # by the pigeonhole principle at least 0.4 of the assignments, less rounding, drop

CASES: dict[str, dict] = {
    "paper": {"capacity_factor": 1.1},
    "dropless": {},
    "vanilla": dataclasses.asdict(BASE.vanilla()),
    "k1": {"top_k": 1},
    "k3": {"top_k": 3},
    "k1 renormalize": {"top_k": 1, "combine": "renormalize"},
    "renormalize": {"combine": "renormalize"},
    "renormalize_nonzero": {"combine": "renormalize_nonzero", "num_zero_experts": 2},
    "renormalize_nonzero k3 tight": {"combine": "renormalize_nonzero", "top_k": 3, **TIGHT},
    "softmax_topk": {"combine": "softmax_topk"},
    "softmax_topk normed k3": {"combine": "softmax_topk", "logits_std": 1.0, "top_k": 3},
    "tanh_mlp": {"gate": "tanh_mlp"},
    "tanh_mlp normed tight": {"gate": "tanh_mlp", "logits_std": 1.0, **TIGHT},
    "normed": {"logits_std": 1.0},
    "normed to 2.5": {"logits_std": 2.5},
    "tight by probability": TIGHT,
    "tight by position": {**TIGHT, "drop_policy": "position"},
    "tight by probability k3 renormalize": {**TIGHT, "top_k": 3, "combine": "renormalize"},
    "tight by position k3 softmax_topk": {**TIGHT, "top_k": 3, "drop_policy": "position", "combine": "softmax_topk"},
    "input_scale": {"input_scale": 2.0},
    "released": {"logits_std": 1.0, "combine": "renormalize_nonzero"},
    "no residual": {"gating_residual": False},
    "zero only": {"num_constant_experts": 0, "num_copy_experts": 0, "num_zero_experts": 2},
    "copy only": {"num_constant_experts": 0, "num_copy_experts": 2, "num_zero_experts": 0, "input_scale": 0.5},
    "constant only": {"num_constant_experts": 3, "num_copy_experts": 0, "num_zero_experts": 0, "input_scale": 0.5},
    "every expert": {"top_k": 8},
    "shared": {"num_shared_experts": 1, **TIGHT},
    "two shared, scaled": {"num_shared_experts": 2, "input_scale": 0.5},
    "vanilla shared k1": {**dataclasses.asdict(BASE.vanilla()), "num_shared_experts": 1, "top_k": 1},
    "one ffn": {"num_ffn_experts": 1, "tau": 0.1, "capacity_factor": 1.0},
}


def compare(
    moe: MoE,
    config: MoEConfig,
    *,
    dtype: torch.dtype = torch.float64,
    first: bool = False,
    masked: bool = False,
    biased: bool = False,
) -> None:
    """Runs layer and oracle on the same numbers and compares everything that both return."""
    experts = config.layout().num_experts
    x = randn(TOKENS, config.hidden_size, seed=1, dtype=dtype).requires_grad_()
    # Logits are carried in float32 at least, whatever the dtype of the model.
    carried = torch.promote_types(dtype, torch.float32)
    previous = None if first else randn(TOKENS, experts, seed=2, dtype=carried).requires_grad_()
    mask = torch.arange(TOKENS) % 5 != 3 if masked else None
    bias = randn(experts, seed=3, dtype=carried) if biased else None
    # One scalar that depends on everything that carries a gradient: the output, the carried logits, and Eq. 7.
    to_output, to_logits = randn(TOKENS, config.hidden_size, seed=4), randn(TOKENS, experts, seed=5)

    output, routing = moe(x, previous, mask=mask, selection_bias=bias)
    loss = (output * to_output.to(dtype)).sum() + (routing.logits * to_logits.to(carried)).sum()
    (loss + balance_loss(routing, config, mask=mask)).backward()

    parameters = oracle.parameters_of(moe)
    x64 = x.detach().double().requires_grad_()
    previous64 = None if previous is None else previous.detach().double().requires_grad_()
    expected = oracle.moe_layer(
        parameters,
        config,
        x64,
        previous64,
        mask=mask,
        selection_bias=None if bias is None else bias.double(),
        capacity_factor=config.capacity_factor if moe.training else config.eval_capacity_factor,
    )
    loss = (expected.output * to_output).sum() + (expected.logits * to_logits).sum()
    (loss + oracle.balance_loss(expected, config, mask)).backward()

    assert torch.equal(routing.expert, expected.expert)
    assert torch.equal(routing.kept, expected.kept)
    for name in ("logits", "probs", "weight"):
        assert_close(getattr(routing, name), getattr(expected, name), like=dtype, name=name)
    assert_close(output, expected.output, like=dtype, name="output")
    pairs = {name: (p.grad, parameters[name].grad) for name, p in moe.named_parameters()}
    pairs["x"] = (x.grad, x64.grad)
    if previous is not None and previous64 is not None and config.gating_residual:
        pairs["previous"] = (previous.grad, previous64.grad)
    for name, (gradient, reference) in pairs.items():
        if gradient is None or reference is None:  # a parameter that no token reached may have no gradient at all
            gradient = torch.zeros(1, dtype=dtype) if gradient is None else gradient
            reference = torch.zeros(1) if reference is None else reference
            assert gradient.abs().max() == reference.abs().max() == 0, f"gradient of {name}"
            continue
        assert_close(gradient, reference, like=dtype, name=f"gradient of {name}")


@pytest.mark.parametrize("masked", [False, True], ids=["all real", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_reference_backend_in_float64_equals_the_oracle(case: str, masked: bool) -> None:
    config = dataclasses.replace(BASE, **CASES[case])
    compare(random_moe(config), config, masked=masked)


@pytest.mark.parametrize("case", ["paper", "tight by probability", "normed", "softmax_topk", "tanh_mlp"])
def test_selection_bias_equals_the_oracle(case: str) -> None:
    config = dataclasses.replace(BASE, **CASES[case])
    compare(random_moe(config), config, biased=True)


@pytest.mark.parametrize("case", ["paper", "tanh_mlp", "released"])
def test_first_layer_equals_the_oracle(case: str) -> None:
    config = dataclasses.replace(BASE, **CASES[case])
    compare(random_moe(config, first=True), config, first=True)


def test_later_layer_without_previous_logits_equals_the_oracle() -> None:
    compare(random_moe(BASE), BASE, first=True)


@pytest.mark.parametrize("factor", [None, 0.6])
def test_evaluation_uses_its_own_capacity_factor(factor: float | None) -> None:
    config = dataclasses.replace(BASE, capacity_factor=0.3, eval_capacity_factor=factor)
    compare(random_moe(config).eval(), config)


F32 = ("paper", "tight by position", "released", "input_scale", "vanilla", "k1", "k3", "shared", "two shared, scaled")


@pytest.mark.parametrize("case", F32)
@pytest.mark.parametrize("backend", ["grouped", "auto", "reference"])
def test_backends_in_float32_equal_the_oracle(case: str, backend: str) -> None:
    config = dataclasses.replace(BASE, **CASES[case])
    compare(random_moe(config, backend=backend, dtype=torch.float32), config, dtype=torch.float32, masked=True)


@pytest.mark.parametrize("case", CASES)
def test_triton_equals_the_oracle(case: str) -> None:
    """Every case: routing is a kernel of its own there."""
    config = dataclasses.replace(BASE, **CASES[case])
    moe = random_moe(config, backend="triton", dtype=torch.float32)
    compare(moe, config, dtype=torch.float32, masked=True, biased=True)


@pytest.mark.parametrize("case", ["paper", "tight by position", "released"])
@pytest.mark.parametrize("backend", ["grouped", "reference", "triton"])
def test_backends_in_bfloat16_equal_the_oracle(case: str, backend: str) -> None:
    """The router works in float32, so that it chooses as the oracle does on the same rounded parameters."""
    config = dataclasses.replace(BASE, intermediate_size=16, **CASES[case])  # rows of 16 bytes
    compare(random_moe(config, backend=backend, dtype=torch.bfloat16), config, dtype=torch.bfloat16, masked=True)


@pytest.mark.parametrize("case", ["tight by probability", "tight by position"])
def test_tight_cases_do_drop_assignments(case: str) -> None:
    """Otherwise the comparisons above would say nothing about dropping."""
    config = dataclasses.replace(BASE, **CASES[case])
    _, routing = random_moe(config)(randn(TOKENS, config.hidden_size, seed=1), randn(TOKENS, 8, seed=2))
    assert 0 < routing.kept.sum() < routing.kept.numel()


def test_parameters_have_the_published_names_and_shapes() -> None:
    shapes = {name: tuple(p.shape) for name, p in MoE(BASE).named_parameters()}
    assert shapes == {
        "router.weight": (8, 8),
        "router.residual.weight": (8, 8),
        "experts.gate_up_proj": (4, 24, 8),
        "experts.down_proj": (4, 8, 12),
        "zero_computation.constant": (2, 8),
        "zero_computation.mix": (2, 2, 8),
    }
    tanh = {n: tuple(p.shape) for n, p in MoE(dataclasses.replace(BASE, gate="tanh_mlp")).named_parameters()}
    assert (tanh["router.hidden.weight"], tanh["router.weight"]) == ((64, 8), (8, 64))


def test_parameters_that_would_never_learn_do_not_exist() -> None:
    assert "router.residual.weight" not in dict(MoE(BASE, first=True).named_parameters())
    assert set(dict(MoE(BASE.vanilla()).named_parameters())) == {
        "router.weight",
        "experts.gate_up_proj",
        "experts.down_proj",
    }
    moe = MoE(dataclasses.replace(BASE, num_constant_experts=0))
    assert moe.zero_computation.constant is None
    assert moe.zero_computation.mix is None


def test_leading_shape_of_x_is_kept_and_tokens_are_flattened_in_order() -> None:
    moe = random_moe(BASE)
    x, previous = randn(2, 3, 8, seed=6), randn(6, 8, seed=7)
    output, routing = moe(x, previous)
    flat_output, flat_routing = moe(x.reshape(6, 8), previous)
    assert output.shape == (2, 3, 8)
    assert torch.equal(output.reshape(6, 8), flat_output)
    assert all(torch.equal(a, b) for a, b in zip(routing, flat_routing, strict=True))
