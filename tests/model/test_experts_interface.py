"""Our kernels in transformers' own models: what they compute, that they ran, and what they refuse."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from moepp import errors, expert_ffn
from moepp.model import experts_interface
from moepp.ops import BACKENDS

from ..factory import randn
from ..tolerances import assert_close
from .factory import fill, gradients, tiny_model, tokens

LAYERS, EXPERTS = 2, 4
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
NAMES = [f"moepp_{name}" for name in BACKENDS]
MODELS = ["mixtral", "qwen3_moe"]


def mixtral_config(**changes: object) -> MixtralConfig:
    return MixtralConfig(**(SIZES | {"intermediate_size": 48, "num_local_experts": EXPERTS} | changes))


def built(model: str, implementation: str) -> PreTrainedModel:
    """A tiny model of transformers' with known weights, set to an implementation after it was built."""
    if model == "mixtral":
        made: PreTrainedModel = MixtralForCausalLM(mixtral_config())
    else:
        config = Qwen3MoeConfig(**SIZES, head_dim=8, moe_intermediate_size=48, num_experts=EXPERTS)
        config.num_experts_per_tok = 2
        made = Qwen3MoeForCausalLM(config)
    fill(made)
    made.set_experts_implementation(implementation)
    return made.eval()


def experts(implementation: str = "moepp_reference", **changes: object) -> MixtralExperts:
    """Mixtral's experts alone."""
    config = mixtral_config(**changes)
    config._experts_implementation = implementation
    made = MixtralExperts(config)
    fill(made)
    return made


def runnable(name: str, grad: bool) -> bool:
    """Whether a backend takes these models' tensors, which some do without gradients or on a GPU only."""
    x, weight = torch.zeros(8, 32), torch.ones(8, 2)
    gate_up, down = (torch.zeros(shape).requires_grad_(grad) for shape in ((EXPERTS, 96, 32), (EXPERTS, 32, 48)))
    try:
        expert_ffn(x, torch.zeros(8, 2).long(), weight, gate_up, down, backend=name.removeprefix("moepp_"))
    except errors.BackendUnavailable:
        return False
    return True


def assert_ran(calls: Counter[str], name: str, times: int) -> None:
    chosen = name.removeprefix("moepp_")
    assert calls.total() == times
    assert chosen == "auto" or calls[chosen] == times


@pytest.mark.parametrize("name", [name for name in NAMES if runnable(name, grad=True)])
@pytest.mark.parametrize("model", MODELS)
def test_our_kernels_give_transformers_models_eager_logits_and_gradients(
    model: str, name: str, calls: Counter[str]
) -> None:
    def run(implementation: str) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = built(model, implementation)
        ids = tokens(2, 12)
        out = chosen(ids, labels=ids)
        out.loss.backward()
        return out.logits, gradients(chosen)

    expected, reference = run("eager")
    assert not calls
    logits, grads = run(name)
    assert_ran(calls, name, LAYERS)
    assert_close(logits, expected, name="logits")
    for parameter, gradient in grads.items():
        assert reference[parameter].any()
        assert_close(gradient, reference[parameter], name=f"gradient of {parameter}")


@pytest.mark.parametrize("name", [name for name in NAMES if runnable(name, grad=False)])
@pytest.mark.parametrize("model", MODELS)
def test_our_kernels_generate_what_eager_does(model: str, name: str, calls: Counter[str]) -> None:
    new = 6
    ids = tokens(2, 8)
    settings = {"max_new_tokens": new, "do_sample": False}
    expected = built(model, "eager").generate(ids, **settings)
    assert not calls
    ours = built(model, name)
    assert torch.equal(ours.generate(ids, **settings), expected)
    assert_ran(calls, name, LAYERS * new)
    with torch.no_grad():
        assert_close(ours(tokens(2, 12)).logits, built(model, "eager")(tokens(2, 12)).logits, name="logits")
    assert_ran(calls, name, LAYERS * (new + 1))


def test_a_model_can_be_built_with_our_names(calls: Counter[str]) -> None:
    model = MixtralForCausalLM._from_config(mixtral_config(), experts_implementation="moepp_reference")
    with torch.no_grad():
        model(tokens(1, 4))
    assert calls == {"reference": LAYERS}


def test_our_own_model_knows_the_prefixed_names(calls: Counter[str]) -> None:
    model = tiny_model()
    model.set_experts_implementation("moepp_reference")
    with torch.no_grad():
        model(tokens(1, 4))
    assert calls == {"reference": 3}


@pytest.mark.parametrize("name", [name for name in NAMES if runnable(name, grad=True)])
def test_ids_of_another_process_are_skipped(name: str) -> None:
    """Expert parallelism marks assignments to experts elsewhere with an id that no local expert has."""
    x, weight = randn(6, 32, seed=1, dtype=torch.float32), torch.full((6, 2), 0.5)
    expert = torch.tensor([[0, EXPERTS], [EXPERTS, EXPERTS], [3, 1], [EXPERTS, 2], [1, 0], [2, EXPERTS]])
    local = expert < EXPERTS
    y = experts(name)(x, expert, weight)
    assert_close(y, experts("eager")(x, torch.where(local, expert, 0), weight * local))
    assert not y[1].any()


def test_the_sum_over_k_is_float32_though_a_router_rounds_its_weights() -> None:
    module = experts("moepp_grouped").bfloat16()
    x, expert = randn(16, 32, seed=2, dtype=torch.bfloat16), torch.tensor([[0, 1]] * 16)
    weight = torch.rand(16, 2, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert torch.equal(module(x, expert, weight), module(x, expert, weight.float()))


def gpt_oss() -> PreTrainedModel:
    config = GptOssConfig(**SIZES, head_dim=8, intermediate_size=48, num_local_experts=EXPERTS)
    config.num_experts_per_tok = 2
    model = GptOssForCausalLM(config)
    model.set_experts_implementation("moepp_auto")
    return model


def test_experts_of_another_form_are_refused_in_one_line() -> None:
    message = (
        r"^experts_implementation='moepp_auto' cannot run GptOssExperts: they have biases; "
        r"use one of transformers' own, such as 'grouped_mm'$"
    )
    with pytest.raises(errors.BackendUnavailable, match=message):
        gpt_oss()(tokens(1, 4))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("has_gate", False, "they have no gate"),
        ("has_bias", True, "they have biases"),
        ("is_transposed", True, "their weights are transposed"),
        ("is_concatenated", False, "their gate and up rows are interleaved"),
        ("has_post_expert_norm", True, "a norm follows each expert"),
        ("act_fn", nn.GELU(), "their activation is GELU, not SiLU"),
    ],
)
def test_each_difference_has_its_reason(field: str, value: object, reason: str) -> None:
    module = experts()
    assert experts_interface.why_not(module) is None
    setattr(module, field, value)
    with pytest.raises(errors.BackendUnavailable, match=reason):
        module(torch.zeros(1, 32), torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2))


def test_experts_that_gate_in_their_own_way_are_refused() -> None:
    class Clamped(MixtralExperts):
        def _apply_gate(self, gate_up: Tensor) -> Tensor:
            return gate_up.chunk(2, dim=-1)[0].clamp(max=1)

    assert experts_interface.why_not(Clamped(mixtral_config())) == "they gate in their own way"


@pytest.mark.parametrize("activation", ["silu", "swish"])
def test_both_of_transformers_silus_are_silu(activation: str) -> None:
    assert experts_interface.why_not(experts(hidden_act=activation)) is None
