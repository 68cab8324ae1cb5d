"""What is saved is what comes back: weights, configuration, tied embeddings, through transformers' Auto classes."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from moepp.errors import BackendUnavailable
from moepp.model import MoEPPForCausalLM, MoEPPModel

from ..tolerances import assert_close
from .factory import tiny_config, tiny_model, tokens

KINDS: dict[str, dict] = {
    "paper": {},
    "vanilla": {"num_constant_experts": 0, "num_copy_experts": 0, "num_zero_experts": 0, "gating_residual": False},
    "released": {"gate": "tanh_mlp", "logits_std": 1.0, "combine": "renormalize_nonzero", "constant_init_std": 1.0},
    "tied": {"tie_word_embeddings": True},
    "shared": {"num_shared_experts": 2},
}


def logits(model: MoEPPForCausalLM) -> Tensor:
    with torch.no_grad():
        return model(tokens(2, 12)).logits


def saved_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_comes_back_with_equal_logits(kind: str, tmp_path: Path) -> None:
    model = tiny_model(**KINDS[kind])
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is MoEPPForCausalLM
    assert not loaded.training
    assert {key: list(found) for key, found in report.items()} == {key: [] for key in report}
    assert loaded.config.moe == model.config.moe
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_weights_are_not_initialised_again(kind: str, tmp_path: Path) -> None:
    """Routers and experts initialise themselves: transformers must see that theirs are loaded."""
    model = tiny_model(**KINDS[kind])
    model.save_pretrained(tmp_path)
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters())
    assert set(loaded) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded[name], parameter), name


def test_missing_weights_are_reported_and_initialised(tmp_path: Path) -> None:
    """A layer more than the checkpoint has: its router starts without memory, its constants at their own size."""
    tiny_model().save_pretrained(tmp_path)
    config = tiny_config(num_hidden_layers=4, constant_init_std=0.5)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert report["missing_keys"]
    assert all(".layers.3." in name for name in report["missing_keys"])
    added = loaded.model.layers[3].mlp
    assert not added.router.residual.weight.any()
    assert 0.3 < added.zero_computation.constant.std() < 0.7
    assert 0.015 < added.experts.gate_up_proj.std() < 0.025
    assert loaded.model.layers[2].mlp.router.residual.weight.any()


def test_base_model_loads_from_the_checkpoint_with_a_head_and_back(tmp_path: Path) -> None:
    model, ids = tiny_model(), tokens(2, 12)
    model.save_pretrained(tmp_path / "head")
    base = AutoModel.from_pretrained(tmp_path / "head")
    assert type(base) is MoEPPModel
    with torch.no_grad():
        assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
    base.save_pretrained(tmp_path / "base")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(report["missing_keys"]) == {"lm_head.weight"}
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).last_hidden_state, model.model(ids).last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_model_saved_in_half_precision_comes_back_in_it(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "single")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "single", dtype=dtype)
    model.save_pretrained(tmp_path / "half")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(logits(loaded), logits(model))


def test_tied_embeddings_share_storage_and_are_saved_once(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in saved_names(tmp_path)
    for one in (model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert one.lm_head.weight is one.model.embed_tokens.weight
        assert "lm_head.weight" not in dict(one.named_parameters())
    one.lm_head.weight.data[5] = 0.0
    assert not one.model.embed_tokens.weight[5].any()


def test_untied_embeddings_are_two_matrices_and_saved_both(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= saved_names(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight.data_ptr() != loaded.model.embed_tokens.weight.data_ptr()
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_checkpoint_holds_the_published_names(tmp_path: Path) -> None:
    """Names in checkpoints are for ever."""
    tiny_model(num_hidden_layers=2).save_pretrained(tmp_path)
    layer = {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
        "mlp.router.weight",
        "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj",
        "mlp.zero_computation.constant",
        "mlp.zero_computation.mix",
    }
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    names |= {f"model.layers.{index}.{name}" for index in range(2) for name in layer}
    # The first layer's W^g would never receive a gradient, so it does not exist.
    names.add("model.layers.1.mlp.router.residual.weight")
    assert saved_names(tmp_path) == names
    tiny_model(num_hidden_layers=2, num_shared_experts=1).save_pretrained(tmp_path / "shared")
    shared = {f"mlp.shared_experts.{name}_proj" for name in ("gate_up", "down")}
    assert saved_names(tmp_path / "shared") == names | {
        f"model.layers.{index}.{name}" for index in range(2) for name in shared
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        {"rope_theta": 100.0},
    ],
    ids=["scaled", "scaled, legacy key", "scaled, older key", "theta", "theta, legacy key"],
)
def test_rotary_settings_change_the_logits_and_survive_saving(changes: dict, tmp_path: Path) -> None:
    model = tiny_model(**changes)
    assert (logits(model) - logits(tiny_model())).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(logits(loaded), logits(model))


def test_legacy_rotary_keys_mean_the_same_as_the_new_one() -> None:
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    legacy = tiny_model(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0})
    assert torch.equal(logits(legacy), logits(tiny_model(rope_parameters=new)))


def test_a_model_is_packed_whole_or_not_at_all() -> None:
    model = tiny_model()
    model.model.layers[-1].mlp.experts.to(torch.float64)  # which cannot be packed
    with pytest.raises(BackendUnavailable, match="cannot be packed"):
        model.pack_for_inference()
    assert all(layer.mlp.experts.packed is None for layer in model.model.layers)


def test_a_packed_model_generates_and_saves_the_same(tmp_path: Path) -> None:
    model = tiny_model(num_shared_experts=1).eval()
    ids = tokens(1, 8)
    with torch.no_grad():
        expected = model(ids).logits
        words = model.generate(ids, max_new_tokens=6, do_sample=False)
    model.pack_for_inference()
    with torch.no_grad():
        assert_close(model(ids).logits, expected)
        assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), words)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    model.unpack()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(loaded.named_parameters())[name]), name
