"""The published ``config.json`` and ours: each field's way there and back, and what cannot go."""

from typing import Any

import pytest
import torch

from moepp.errors import ConversionError
from moepp.model import MoEPPConfig, MoEPPForCausalLM, account, released
from moepp.model.released_config import from_published, is_published, to_published

from ..released_factory import published_config
from .factory import tiny_config

RELEASED_7B = published_config(
    vocab_size=65536,
    hidden_size=1536,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=16,
    num_experts=[20],
    max_position_embeddings=2048,
    torch_dtype="bfloat16",
)


def ours(**changes: Any) -> MoEPPConfig:
    return MoEPPConfig.from_dict(from_published(published_config(**changes)))


def expressible(**changes: Any) -> MoEPPConfig:
    return tiny_config(combine="renormalize_nonzero", **changes)


def test_the_released_model_has_7677_million_parameters() -> None:
    """From its configuration alone. Ours has layer 0's unused matrix less."""
    config = MoEPPConfig.from_dict(from_published(RELEASED_7B))
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in MoEPPForCausalLM(config).parameters())
    assert counted == account(config).total_parameters
    stored = sum(torch.Size(place.shape).numel() for place in released.places(config))
    assert stored == counted + 20 * 20
    assert round(stored / 1e9, 3) == 7.677
    assert config.moe.layout().count("ffn") == 16
    assert (config.gate, config.logits_std, config.combine, config.input_scale) == (
        "linear",
        1.0,
        "renormalize_nonzero",
        1.0,
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"gate": "linear", "logits_std": 1.0, "combine": "renormalize_nonzero", "input_scale": 1.0}),
        ({"moe_2layer_gate": True}, {"gate": "tanh_mlp"}),
        ({"moe_gate_norm_std": 2.0}, {"logits_std": 2.0}),
        ({"moe_use_logits_norm": False}, {"logits_std": None}),
        ({"moe_use_mixtral_gating": True}, {"combine": "softmax_topk", "input_scale": 1.0}),
        ({"moe_feature_no_mul_topk": False}, {"combine": "renormalize_nonzero", "input_scale": 2.0}),
        ({"moe_feature_no_mul_topk": False, "moe_use_mixtral_gating": True}, {"input_scale": 1.0}),
        ({"num_experts": [36]}, {"num_ffn_experts": 32, "num_constant_experts": 2, "num_zero_experts": 1}),
        ({"num_experts": [7, 7]}, {"num_ffn_experts": 3}),
        ({"num_key_value_heads": None}, {"num_key_value_heads": 4}),
        ({"hidden_act": "gelu"}, {"hidden_act": "silu"}),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
        ({"eos_token_id": 7}, {"eos_token_id": 7}),
    ],
)
def test_a_published_field_is_ours_under_another_name(changes: dict, expected: dict) -> None:
    config = ours(**changes)
    assert {name: getattr(config, name) for name in expected} == expected


def test_flags_that_are_missing_have_the_published_classs_defaults() -> None:
    """Which are the opposite of what the released model uses."""
    names = ("moe_2layer_gate", "moe_use_logits_norm", "moe_gate_norm_std", "moe_feature_no_mul_topk")
    config = ours(**dict.fromkeys((*names, "moe_use_mixtral_gating", "moe_expert_interval")))
    assert (config.gate, config.logits_std, config.combine, config.input_scale) == (
        *("tanh_mlp", None, "renormalize_nonzero"),
        2.0,
    )


def test_ntk_scaling_multiplies_the_base_of_the_rotary_embeddings() -> None:
    config = ours(rope_theta=5000.0, rope_scaling={"type": "ntk", "factor": 3.0})
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 15000.0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"moe_2layer_gate": True, "moe_use_logits_norm": False},
        {"moe_use_mixtral_gating": True, "moe_feature_no_mul_topk": False},
        {"moe_feature_no_mul_topk": False, "moe_gate_norm_std": 3.0},
        {"rope_scaling": {"type": "ntk", "factor": 3.0}, "hidden_act": "gelu", "pretraining_tp": 1, "auto_map": {}},
        dict.fromkeys(("moe_2layer_gate", "moe_use_logits_norm", "moe_feature_no_mul_topk", "num_key_value_heads")),
    ],
)
def test_a_published_configuration_comes_back_as_it_was(changes: dict) -> None:
    """With what was kept, to the letter; without it, as one that means the same."""
    published = published_config(**changes)
    config = MoEPPConfig.from_dict(from_published(published))
    assert to_published(config, published) == published
    fresh = to_published(config)
    assert is_published(fresh)
    assert MoEPPConfig.from_dict(from_published(fresh)).to_dict() == config.to_dict()


def test_a_configuration_that_was_changed_since_overrides_what_was_kept() -> None:
    published = published_config(pretraining_tp=4)
    config = MoEPPConfig.from_dict(from_published(published))
    config.logits_std = 0.5
    assert to_published(config, published) == published | {
        "moe_gate_norm_std": 0.5,
        "rope_scaling": None,
        "use_cache": True,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_expert_interval": 2}, r"moe_expert_interval=2 is not supported, and crashes in the published code too"),
        ({"num_experts": [4]}, r"num_experts=\[4\] must be a list of one number >= 5, the experts of every layer: FFN"),
        ({"num_experts": [7, 8]}, r"num_experts=\[7, 8\] must be a list of one number"),
        ({"num_experts": [7, 7, 7]}, r"num_experts=\[7, 7, 7\] must be"),
        ({"num_experts": 7}, r"num_experts=7 must be a list"),
        ({"num_experts": ["7"]}, r"num_experts=\['7'\] must be a list"),
        ({"num_experts": None}, r"^config\.json lacks num_experts; copy or download it again$"),
        ({"hidden_size": None, "vocab_size": None}, r"^config\.json lacks vocab_size, hidden_size; copy"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling=\{'type': 'linear', .* is not supported"),
        ({"rope_scaling": {"type": "ntk"}}, r"rope_scaling=\{'type': 'ntk'\} is not supported; only null and"),
        ({"rope_scaling": {"type": "ntk", "factor": 0}}, r"rope_scaling=.* is not supported"),
        ({"rope_scaling": "ntk"}, r"rope_scaling='ntk' is not supported"),
        ({"rope_theta": "big"}, r"rope_theta='big' must be a number > 0"),
        ({"moe_use_logits_norm": "yes"}, r"moe_use_logits_norm='yes' must be true or false"),
        ({"moe_gate_norm_std": 0}, r"moe_gate_norm_std=0 must be a number > 0"),
        ({"architectures": ["LlamaForCausalLM"]}, r"architectures=\['LlamaForCausalLM'\] is not the published MoE\+\+"),
        ({"model_type": "llama"}, r"model_type='llama' with .* is not the published MoE\+\+ model"),
    ],
)
def test_a_configuration_that_cannot_be_ours_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConversionError, match=message) as caught:
        from_published(published_config(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"combine": "probabilities"},
            r"^model\.combine='probabilities' cannot .* has 'renormalize_nonzero' or 'softm",
        ),
        ({"num_constant_experts": 3}, r"^model\.num_constant_experts=3 cannot be expressed .*, which has 2; keep this"),
        ({"num_copy_experts": 0}, r"^model\.num_copy_experts=0 cannot"),
        ({"num_zero_experts": 2}, r"^model\.num_zero_experts=2 cannot"),
        ({"num_shared_experts": 1}, r"^model\.num_shared_experts=1 cannot be expressed .*, which has 0; keep this"),
        ({"top_k": 3}, r"^model\.top_k=3 cannot"),
        ({"gating_residual": False}, r"^model\.gating_residual=False cannot"),
        ({"eval_capacity_factor": 1.0}, r"^model\.eval_capacity_factor=1\.0 cannot"),
        ({"attention_bias": True}, r"^model\.attention_bias=True cannot"),
        ({"head_dim": 16}, r"^model\.head_dim=16 cannot be expressed in the published format, which has 8"),
        ({"input_scale": 3.0}, r"^model\.input_scale=3\.0 cannot .* has 1\.0 or 2\.0"),
        ({"input_scale": 2.0, "combine": "softmax_topk"}, r"^model\.input_scale=2\.0 cannot .* which has 1\.0;"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            r"^model\.rope_parameters\.rope_type='linear' cannot be expressed",
        ),
    ],
)
def test_a_model_that_the_format_cannot_express_is_refused(changes: dict, message: str) -> None:
    to_published(expressible())
    with pytest.raises(ConversionError, match=message) as caught:
        to_published(tiny_config(**({"combine": "renormalize_nonzero"} | changes)))
    assert "\n" not in str(caught.value)
