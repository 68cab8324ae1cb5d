"""``device_map``, offloading and dtypes: weights that are elsewhere, or nowhere, until their module is called."""

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, infer_auto_device_map, init_empty_weights
from torch import Tensor

from moepp.model import MoEPPForCausalLM
from moepp.ops import onednn, packed_weights

from ..model.factory import counted, gradients, tiny_config, tiny_model, tokens
from ..tolerances import assert_close

LAYERS = 3
SPLIT: dict[str, Any] = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "lm_head": "disk",
}
GATES = ("linear", "tanh_mlp")


@pytest.fixture(scope="module", params=GATES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model(gate=request.param).save_pretrained(path)
    return path


def load(folder: Path, **kwargs: Any) -> MoEPPForCausalLM:
    return MoEPPForCausalLM.from_pretrained(folder, **kwargs)


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(tokens(2, 12)).logits


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_a_device_map_that_fits_changes_nothing(device_map: Any, folder: Path) -> None:
    model = load(folder, device_map=device_map)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert torch.equal(logits(model), logits(load(folder)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_on_disk_give_the_same_logits_and_generate(dtype: torch.dtype, folder: Path, tmp_path: Path) -> None:
    model = load(folder, device_map=SPLIT, offload_folder=str(tmp_path), dtype=dtype)
    layers = model.model.layers
    assert {p.device.type for p in layers[0].parameters()} == {"cpu"}
    assert {p.device.type for layer in layers[1:] for p in layer.parameters()} == {"meta"}
    here = load(folder, dtype=dtype)
    assert_close(logits(model), logits(here))
    assert {p.device.type for layer in layers[1:] for p in layer.parameters()} == {"meta"}  # taken away again
    greedy = {"max_new_tokens": 4, "do_sample": False}
    if dtype is torch.float32:
        assert torch.equal(model.generate(tokens(1, 5), **greedy), here.generate(tokens(1, 5), **greedy))


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_accelerate_offloads_a_whole_model(offload: Any, folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    expected = logits(model)
    where = {"offload_dir": str(tmp_path)} if offload is disk_offload else {}
    offload(model, execution_device=torch.device("cpu"), **where)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert_close(logits(model), expected)


def test_packed_copies_of_weights_on_disk_neither_pile_up_nor_go_stale(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such weights are new tensors at each call: a packed copy serves one call and dies with them."""
    packs: Counter[str] = Counter()
    monkeypatch.setattr(onednn, "pack", counted(packs, "packs", onednn.pack))
    model = load(folder, device_map=SPLIT, offload_folder=str(tmp_path))
    gc.collect()
    before = len(packed_weights._cache)
    expected = logits(model)
    assert packs["packs"] == LAYERS
    for _ in range(3):
        assert torch.equal(logits(model), expected)
        gc.collect()
        assert len(packed_weights._cache) == before + 1  # of the layer that stays in memory
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj.mul_(2)
    assert (logits(model) - expected).abs().max() > 1e-2


def test_layers_are_never_split_between_devices() -> None:
    """The gating residual and the residual stream cross a device's border between layers, not inside one."""
    with init_empty_weights():
        model = MoEPPForCausalLM(tiny_config())
    assert set(model._no_split_modules) == {"MoEPPDecoderLayer"}
    size = sum(p.numel() * 4 for p in model.model.layers[0].parameters())
    embedding = model.model.embed_tokens.weight.numel() * 4
    found = infer_auto_device_map(
        model,
        max_memory={0: embedding + 2 * size, "cpu": embedding + 2 * size, "disk": 10 * size},
        no_split_module_classes=list(model._no_split_modules),
    )
    layers = {name for name in found if name.startswith("model.layers.")}
    assert layers == {f"model.layers.{index}" for index in range(LAYERS)}
    assert len({found[name] for name in layers}) > 1


def test_a_model_is_built_without_memory_and_then_loaded(folder: Path) -> None:
    here = load(folder)
    with torch.device("meta"):
        empty = MoEPPForCausalLM(here.config)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    empty.load_state_dict(here.state_dict(), assign=True)
    empty.model.rotary_emb = here.model.rotary_emb  # its frequencies are computed, not saved
    assert torch.equal(logits(empty.eval()), logits(here))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtype_is_that_of_every_weight_and_choices_stay_in_float32(dtype: torch.dtype, folder: Path) -> None:
    model = load(folder, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert load(folder, torch_dtype=dtype).dtype is dtype  # its older name
    assert model.model.rotary_emb.inv_freq.dtype is torch.float32
    ids = tokens(2, 12)
    with torch.no_grad():
        out = model(ids, output_routing=True)
    assert out.logits.dtype is dtype
    assert {routing.logits.dtype for routing in out.routing} == {torch.float32}
    assert {routing.weight.dtype for routing in out.routing} == {torch.float32}
    # The first router sees rounded tokens, not choices that rounding made: its weights are rounded, too, once.
    exact = load(folder)(ids, output_routing=True).routing[0].logits
    assert_close(out.routing[0].logits, exact, like=dtype)


def test_to_converts_like_loading_but_rounds_the_rotary_frequencies(folder: Path) -> None:
    """As in every transformers model: load with ``dtype=``, which leaves them alone."""
    converted, loaded = load(folder).to(torch.bfloat16), load(folder, dtype=torch.bfloat16)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(dict(converted.named_parameters())[name], parameter), name
    assert converted.model.rotary_emb.inv_freq.dtype is torch.bfloat16
    assert not torch.equal(converted.model.rotary_emb.inv_freq.float(), loaded.model.rotary_emb.inv_freq)


def test_a_model_trains_in_bfloat16_weights(folder: Path) -> None:
    model = load(folder, dtype=torch.bfloat16).train()
    ids = tokens(2, 12)
    model(ids, labels=ids).loss.backward()
    assert not [name for name, gradient in gradients(model).items() if not gradient.any()]
