"""The accounting against what it claims to count: the model's parameters and the products it runs."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moepp import Routing
from moepp.model import PRESETS, MoEPPConfig, MoEPPForCausalLM, account, preset

from .factory import tiny_config, tiny_model, tokens

VANILLA = {"num_constant_experts": 0, "num_copy_experts": 0, "num_zero_experts": 0, "gating_residual": False}
ODD: dict[str, dict] = {
    "tanh_mlp gate": {"gate": "tanh_mlp"},
    "tied": {"tie_word_embeddings": True},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 24},
    "attention_bias": {"attention_bias": True},
    "no constants": {"num_constant_experts": 0},
    "one layer": {"num_hidden_layers": 1},
    "no residual": {"gating_residual": False},
    "one expert": {"num_ffn_experts": 1, "num_zero_experts": 3},
    "vanilla": VANILLA,
    "shared": {"num_shared_experts": 2},
    "everything odd": {
        "gate": "tanh_mlp",
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "attention_bias": True,
        "num_hidden_layers": 5,
    },
}
CONFIGS = {name: preset(name) for name in PRESETS} | {name: tiny_config(**changes) for name, changes in ODD.items()}
# Where a part of the model stands, by the names of its parameters.
PARTS = {
    "embedding": ("embed_tokens", "lm_head"),
    "attention": ("self_attn",),
    "router": (".router.",),
    "ffn_expert": (".experts.",),
    "shared_expert": (".shared_experts.",),
    "zero_computation": (".zero_computation.",),
    "norm": ("norm.weight",),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_the_models_part_by_part(name: str) -> None:
    with torch.device("meta"):
        model = MoEPPForCausalLM(CONFIGS[name])
    counted = account(CONFIGS[name])
    assert counted.total_parameters == sum(p.numel() for p in model.parameters())
    parts = {part: getattr(counted, f"{part}_parameters") for part in PARTS}
    for part, marks in PARTS.items():
        found = sum(p.numel() for n, p in model.named_parameters() if any(mark in n for mark in marks))
        assert parts[part] == found, part
    assert sum(parts.values()) == counted.total_parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_activated_parameters_are_the_total_less_idle_experts(name: str) -> None:
    config, counted = CONFIGS[name], account(CONFIGS[name])
    ffn = config.moe.layout().ffn
    one = 3 * config.hidden_size * config.intermediate_size * config.num_hidden_layers
    assert counted.total_parameters - counted.activated_parameters == (ffn - min(config.top_k, ffn)) * one
    expected = counted.total_parameters - (ffn - config.top_k * counted.ffn_share) * one
    assert counted.expected_activated_parameters == pytest.approx(expected)


def counted_flops(config: MoEPPConfig, batch: int, length: int, *, backward: bool = False, edit=None) -> float:
    """What torch counts on one batch, per token, less the rotary embeddings, which the accounting leaves out.

    Eager attention and the reference experts are made of products that the counter sees one by one.
    """
    model = tiny_model(config)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("reference")
    ids = tokens(batch, length)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = model(ids, routing_edit=edit, use_cache=False).logits
        if backward:
            logits.sum().backward()
    rotary = sum(counter.get_flop_counts().get("MoEPPForCausalLM.model.rotary_emb", {}).values())
    return (counter.get_total_flops() - rotary) / (batch * length)


BATCH, LENGTH = 2, 8
# The counter sees full attention matrices: each token attends to LENGTH positions, which causally is the average of
# a context of 2·LENGTH - 1.
CONTEXT = 2 * LENGTH - 1


@pytest.mark.parametrize(
    "name", ["plain", "tanh_mlp gate", "tied", "multi-query", "wide heads", "attention_bias", "shared"]
)
def test_forward_flops_of_a_vanilla_model_are_what_torch_counts(name: str) -> None:
    config = tiny_config(**(VANILLA | ODD.get(name, {})))
    assert account(config, context=CONTEXT).forward_flops_per_token == counted_flops(config, BATCH, LENGTH)


def test_training_flops_are_what_torch_counts_forward_and_backward() -> None:
    """Every product has two in its backward pass; the first layer's too, for the embeddings' gradient."""
    config = tiny_config(**VANILLA)
    assert account(config, context=CONTEXT).training_flops_per_token == counted_flops(
        config, BATCH, LENGTH, backward=True
    )


def one_ffn_one_copy(routing: Routing) -> Routing:
    """Sends every token through FFN expert 0 and the copy expert, number 6 of 4 FFN | 2 constant | copy | zero."""
    expert = torch.tensor([0, 6]).expand_as(routing.expert)
    return routing._replace(expert=expert, kept=torch.ones_like(routing.kept))


@pytest.mark.parametrize(("shared", "bound"), [(0, 2.0), (1, 1.5)])
def test_forward_flops_at_the_expected_share_are_what_torch_counts(shared: int, bound: float) -> None:
    """With tau = 1 and as many FFN as zero-computation experts the expected share is a half: one of a token's two."""
    config = tiny_config(tau=1.0, num_shared_experts=shared)
    counted = account(config, context=CONTEXT)
    assert counted.ffn_share == 0.5
    assert counted.forward_flops_per_token == counted_flops(config, BATCH, LENGTH, edit=one_ffn_one_copy)
    assert counted.vanilla_expert_flops_per_token == account(config.vanilla()).expert_flops_per_token
    assert counted.vanilla_expert_flops_per_token / counted.expert_flops_per_token == counted.speedup_bound == bound


def test_context_is_the_maximum_unless_given_and_costs_attention_only() -> None:
    config = tiny_config()
    default = account(config)
    assert default == account(config, context=config.max_position_embeddings)
    longer = account(config, context=config.max_position_embeddings + 2)
    # One more position on average: QK and PV, 2 FLOPs each, over 4 heads of 8, in 3 layers.
    assert longer.forward_flops_per_token - default.forward_flops_per_token == 2 * 2 * 4 * 8 * 3
    assert longer.expert_flops_per_token == default.expert_flops_per_token


# Gain over vanilla that Table 1 bounds, per cent, for the sizes and tau of Table 3; None where the paper has no run.
BOUNDS = {
    0.10: (500, 250, 250, None),
    0.25: (200, 100, 100, None),
    0.50: (100, 50, 50, None),
    0.75: (66.7, 33.3, 33.3, 33.3),
    1.00: (50, 25, 25, None),
}
SIZES = ("moepp-0.6b-8+4", "moepp-1b-16+4", "moepp-2b-32+8", "moepp-7b-16+4")


@pytest.mark.parametrize(
    ("name", "tau", "bound"),
    [(name, tau, b) for tau, row in BOUNDS.items() for name, b in zip(SIZES, row, strict=True) if b is not None],
)
def test_speedup_bound_is_table_1_for_the_runs_of_table_3(name: str, tau: float, bound: float) -> None:
    config = preset(name, tau=tau)
    counted, twin = account(config), account(config.vanilla())
    assert 100 * (counted.speedup_bound - 1) == pytest.approx(bound, abs=0.05)
    assert counted.speedup_bound * counted.ffn_share == pytest.approx(1)
    assert counted.vanilla_expert_flops_per_token == twin.expert_flops_per_token
    assert twin.expert_flops_per_token / counted.expert_flops_per_token == pytest.approx(counted.speedup_bound)
    assert (twin.ffn_share, twin.speedup_bound) == (1, 1)


@pytest.mark.parametrize("name", ["tied", "multi-query", "wide heads"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_bytes_are_those_of_the_weights_and_of_the_cache(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    model = tiny_model(config).to(dtype)
    counted = account(config, bytes_per_weight=dtype.itemsize)
    assert counted.weight_bytes == sum(p.nbytes for p in model.parameters())
    with torch.no_grad():
        cache = model(tokens(1, 8), use_cache=True).past_key_values
    assert 8 * counted.kv_bytes_per_token == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_bytes_count_two_per_weight_by_default() -> None:
    counted = account(preset("moepp-7b-16+4"))
    assert counted == account(preset("moepp-7b-16+4"), bytes_per_weight=2)
    assert counted.weight_bytes == 2 * counted.total_parameters
    assert counted.kv_bytes_per_token == 2 * 2 * 24 * 16 * 96  # keys and values, bf16, layers, heads, their width
    assert dataclasses.replace(counted, weight_bytes=0, kv_bytes_per_token=0) == dataclasses.replace(
        account(preset("moepp-7b-16+4"), bytes_per_weight=4), weight_bytes=0, kv_bytes_per_token=0
    )
