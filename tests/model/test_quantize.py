"""``quantize_experts``: a model's FFN experts in fewer bits, everything else as it was."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from moepp import MoE
from moepp.errors import BackendUnavailable, ConfigError
from moepp.layers import FFNExperts, QuantizedExperts
from moepp.model import MoEPPForCausalLM, quantize_experts
from moepp.ops.quantized import SCHEMES

from .factory import tiny_model, tokens


def model(**changes: object) -> MoEPPForCausalLM:
    """Of sizes that int4's kernel takes."""
    return tiny_model(**({"hidden_size": 64, "intermediate_size": 96} | changes))


def expert_bytes(model: torch.nn.Module) -> int:
    return sum(t.nbytes for name, t in model.state_dict().items() if ".experts." in name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("scheme", "allowed"), [("int8", 0.03), ("int4", 0.3)])
def test_logits_stay_close_at_the_same_routing(scheme: str, allowed: float, dtype: torch.dtype) -> None:
    full, quantized = (model(num_shared_experts=1).to(dtype) for _ in range(2))
    quantize_experts(quantized, scheme)
    with torch.inference_mode():
        # A choice on the edge may fall otherwise: both go the full model's ways.
        routing = full(tokens(2, 12), output_routing=True).routing
        edits = [lambda r, e=layer.expert: r._replace(expert=e, weight=r.probs.gather(1, e)) for layer in routing]
        exact = full(tokens(2, 12), routing_edit=edits).logits.double()
        logits = quantized(tokens(2, 12), routing_edit=edits).logits.double()
    error = (logits - exact).norm() / exact.norm()
    assert allowed / 50 < error < allowed


@pytest.mark.parametrize("scheme", SCHEMES)
def test_generation_uses_the_quantised_experts_and_a_cache(scheme: str) -> None:
    quantized = quantize_experts(model(), scheme)
    calls = []
    for layer in quantized.modules():
        if isinstance(layer, QuantizedExperts):
            layer.register_forward_hook(lambda module, args, y: calls.append(len(args[0])))
    ids = tokens(1, 5)
    out = {
        cache: quantized.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)
    }
    assert torch.equal(out[True], out[False])
    assert calls[: 3 * 6] == [5] * 3 + [1] * 3 * 5  # three layers; the prompt, then a token at a time


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_the_ffn_experts_change(scheme: str) -> None:
    before = {name: t.clone() for name, t in model(num_shared_experts=1).state_dict().items()}
    quantized = quantize_experts(m := model(num_shared_experts=1), scheme)
    assert quantized is m
    after = quantized.state_dict()
    same = [name for name in before if "experts." not in name]
    assert len(same) > 20
    assert all(torch.equal(before[name], after[name]) for name in same)
    for experts in (".mlp.experts.", ".mlp.shared_experts."):
        assert {name.rpartition(".")[2] for name in after if experts in name} == {
            "gate_up_proj",
            "gate_up_proj_scale",
            "down_proj",
            "down_proj_scale",
        }
        assert not any(name for name, _ in quantized.named_parameters() if experts in name)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_full_weights_are_freed(scheme: str) -> None:
    m = model()
    full = expert_bytes(m)
    originals = [weakref.ref(layer.experts.gate_up_proj) for layer in m.modules() if isinstance(layer, MoE)]
    quantize_experts(m, scheme)
    gc.collect()
    assert originals
    assert all(original() is None for original in originals)
    assert expert_bytes(m) < full * 0.29


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_state_dict_comes_back_into_a_model_quantised_alike(scheme: str) -> None:
    one, other = quantize_experts(model(), scheme), quantize_experts(model(seed=1), scheme)
    with torch.inference_mode():
        logits = one(tokens(2, 12)).logits
        assert not torch.equal(other(tokens(2, 12)).logits, logits)
        other.load_state_dict(one.state_dict())
        assert torch.equal(other(tokens(2, 12)).logits, logits)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_model_may_change_its_dtype(scheme: str) -> None:
    quantized = quantize_experts(model(), scheme)
    with torch.inference_mode():
        before = quantized(tokens(2, 12)).logits
        assert torch.equal(quantized.float()(tokens(2, 12)).logits, before)
        assert quantized.half()(tokens(2, 12)).logits.isfinite().all()
        assert quantized.bfloat16()(tokens(2, 12)).logits.isfinite().all()


def test_saving_is_refused(tmp_path: Path) -> None:
    quantized = quantize_experts(model(), "int8")
    with pytest.raises(ConfigError, match=r"^a model with quantised experts is not saved; save the original"):
        quantized.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_is_refused(scheme: str) -> None:
    ids = tokens(2, 12)
    with pytest.raises(BackendUnavailable, match=rf"{scheme} experts have no gradients"):
        quantize_experts(model(), scheme)(ids, labels=ids)


def test_unknown_scheme_changes_nothing() -> None:
    m = model()
    with pytest.raises(ConfigError, match=r"^scheme='int3' does not exist; choose one of int8, int4"):
        quantize_experts(m, "int3")
    assert all(isinstance(layer.experts, FFNExperts) for layer in m.modules() if isinstance(layer, MoE))


def test_quantising_twice_or_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"quantised already"):
        quantize_experts(quantize_experts(model(), "int8"), "int4")
    with pytest.raises(ConfigError, match=r"no MoE layers"):
        quantize_experts(torch.nn.Linear(2, 2), "int8")


def test_packed_experts_are_quantised_alike() -> None:
    packed = model().to(torch.bfloat16)
    try:
        packed.pack_for_inference()
    except BackendUnavailable as reason:
        pytest.skip(str(reason))
    plain = quantize_experts(model().to(torch.bfloat16), "int8").state_dict()
    again = quantize_experts(packed, "int8").state_dict()
    assert all(torch.equal(again[name], values) for name, values in plain.items())
