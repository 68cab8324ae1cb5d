"""MoEPPConfig: what it refuses and with which words, its round trips, and the vanilla twin."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from moepp import MoEConfig
from moepp.errors import ConfigError
from moepp.model import MoEPPConfig
from moepp.model.configuration_moepp import MOE_FIELDS

from .factory import tiny_config

# One value per field that is not its default, so that a field that is lost on the way shows.
UNUSUAL = {
    "num_ffn_experts": 5,
    "num_constant_experts": 3,
    "num_copy_experts": 0,
    "num_zero_experts": 2,
    "num_shared_experts": 1,
    "top_k": 3,
    "tau": 0.3,
    "capacity_factor": 1.7,
    "eval_capacity_factor": 2.5,
    "drop_policy": "position",
    "gating_residual": False,
    "gate": "tanh_mlp",
    "logits_std": 1.5,
    "combine": "renormalize_nonzero",
    "input_scale": 2.0,
    "constant_init_std": 1.0,
    "residual_init_std": 0.01,
    "router_aux_loss_coef": 0.05,
    "head_dim": 10,
    "attention_bias": True,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[
            ({name: value}, rf"^model\.{name}={value!r} must be an integer >= 1$")
            for name in (
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
            )
            for value in (0, -2, 2.5, "8", True)
        ],
        (
            {"num_key_value_heads": 3},
            r"^model\.num_key_value_heads=3 does not divide model\.num_attention_heads=4; choose a divisor$",
        ),
        (
            {"hidden_size": 30},
            r"^model\.num_attention_heads=4 does not divide model\.hidden_size=30; "
            r"choose a divisor or set model\.head_dim$",
        ),
        ({"head_dim": 7}, r"^model\.head_dim=7 must be even for rotary position embeddings$"),
        ({"hidden_act": "gelu"}, r"^model\.hidden_act='gelu' is not supported; MoE\+\+ experts are SwiGLU: 'silu'$"),
        *[
            ({"router_aux_loss_coef": value}, r"^model\.router_aux_loss_coef=\S+ must be a number >= 0$")
            for value in (-0.01, float("nan"), "0.01", None)
        ],
        ({"balance_scope": "globe"}, r"^model\.balance_scope='globe' does not exist; did you mean 'global'\?"),
        # What one layer refuses, the model refuses in the layer's words.
        ({"intermediate_size": 0}, r"^moe\.intermediate_size=0 must be an integer >= 1$"),
        ({"tau": 0}, r"^moe\.tau=0 must be a number > 0; the paper uses 0\.1 to 1\.0$"),
        ({"top_k": 9}, r"^moe\.top_k=9 exceeds the 8 experts of this layer; lower top_k or add experts$"),
        (
            {"num_experts_per_tok": 9},
            r"^moe\.top_k=9 exceeds the 8 experts of this layer; lower top_k or add experts$",
        ),
        ({"combine": "mean"}, r"^moe\.combine='mean' must be one of probabilities, renormalize, "),
    ],
)
def test_refuses_a_value_that_cannot_work(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


def test_unusual_values_differ_from_the_defaults() -> None:
    """And name every field of a layer, so that the round trips below miss none."""
    defaults = MoEPPConfig()
    assert all(getattr(defaults, name) != value for name, value in UNUSUAL.items())
    assert set(MOE_FIELDS) - {"hidden_size", "intermediate_size"} <= set(UNUSUAL)


def test_moe_is_one_layer_with_the_same_values() -> None:
    moe = tiny_config(**UNUSUAL).moe
    assert isinstance(moe, MoEConfig)
    assert (moe.hidden_size, moe.intermediate_size) == (32, 48)
    assert all(getattr(moe, name) == UNUSUAL[name] for name in set(MOE_FIELDS) & set(UNUSUAL))


@pytest.mark.parametrize("changes", [{}, UNUSUAL], ids=["defaults", "unusual"])
def test_saved_configuration_comes_back_equal(changes: dict, tmp_path: Path) -> None:
    config = tiny_config(**changes)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is MoEPPConfig
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    assert loaded.moe == config.moe
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "moepp"


def test_num_experts_per_tok_is_another_name_of_top_k() -> None:
    assert tiny_config(num_experts_per_tok=3).top_k == 3
    assert tiny_config(top_k=3).num_experts_per_tok == 3


def test_key_value_heads_and_head_dim_follow_the_heads() -> None:
    config = tiny_config(num_key_value_heads=None)
    assert (config.num_key_value_heads, config.head_dim) == (4, 8)


def test_vanilla_is_the_same_model_with_the_ffn_experts_alone() -> None:
    config = tiny_config(**(UNUSUAL | {"gating_residual": True}))
    before = config.to_dict()
    twin = config.vanilla()
    assert config.to_dict() == before
    assert twin.moe == config.moe.vanilla()
    changed = {name for name, value in twin.to_dict().items() if value != before[name]}
    assert changed == {"num_constant_experts", "num_zero_experts", "gating_residual"}


def test_the_models_defaults_are_the_layers() -> None:
    """transformers needs them spelt out again; they must not drift apart."""
    model, layer = MoEPPConfig(), {f.name: f.default for f in dataclasses.fields(MoEConfig)}
    shared = {name: default for name, default in layer.items() if default is not dataclasses.MISSING}
    assert len(shared) == len(layer) - 3  # the sizes have none
    assert {name: getattr(model, name) for name in shared} == shared
