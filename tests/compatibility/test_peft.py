"""PEFT's LoRA on every part of the model: trained, saved, loaded, merged; and nothing that silently does nothing."""

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

import moepp.ops
from moepp.errors import BackendUnavailable, ConfigError
from moepp.model import MoEPPForCausalLM, quantize_experts
from moepp.ops import onednn, packed_weights

from ..model.factory import counted, gradients, tiny_model, tokens
from ..model.kernels import RUNS, count_all
from ..tolerances import assert_close

LAYERS = 3
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
# What a user types. Routers and zero-computation experts are small: there it is cheaper to train them than to adapt.
STORIES: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ATTENTION},
    "attention and experts": {"target_modules": ATTENTION, "target_parameters": EXPERTS},
    "everything": {
        "target_modules": "all-linear",
        "target_parameters": EXPERTS,
        "modules_to_save": ["router", "zero_computation"],
    },
}
PARTS = (
    *("experts.gate_up_proj", "experts.down_proj", "router.weight", "router.hidden.weight", "router.residual.weight"),
    *("zero_computation.constant", "zero_computation.mix"),
)


def base(**changes: Any) -> MoEPPForCausalLM:
    return tiny_model(gate="tanh_mlp", **changes)


def adapted(targets: dict[str, Any], *, filled: bool = True, **changes: Any) -> PeftModel:
    """A model with adapters, in evaluation mode; ``filled`` ones are not the identity that they start as."""
    model = get_peft_model(base(**changes), LoraConfig(r=2, **{"target_modules": [], **targets}))
    assert isinstance(model, PeftModel)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if filled and "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(tokens(2, 12)).logits


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts our kernels' calls, and the packing of weights."""
    counter: Counter[str] = Counter()
    for name, backend in list(moepp.ops._BACKENDS.items()):
        monkeypatch.setitem(moepp.ops._BACKENDS, name, replace(backend, run=counted(counter, name, backend.run)))
    monkeypatch.setattr(onednn, "pack", counted(counter, "pack", onednn.pack))
    return counter


@pytest.mark.parametrize("story", STORIES)
def test_adapters_train_save_load_and_merge(story: str, tmp_path: Path) -> None:
    model = adapted(STORIES[story], filled=False)
    start = logits(base())
    assert_close(logits(model), start)  # adapters start as the identity
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    ids, losses = tokens(2, 12), []
    model.train()
    for _ in range(10):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    assert losses[-1] < 0.8 * losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    learned = logits(model)
    with model.disable_adapter():
        assert_close(logits(model), start)

    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter")
    assert_close(logits(loaded), learned)
    merged = loaded.merge_and_unload()
    assert type(merged) is MoEPPForCausalLM
    assert set(merged.state_dict()) == set(base().state_dict())
    assert_close(logits(merged), learned)
    merged.save_pretrained(tmp_path / "merged")
    assert_close(logits(MoEPPForCausalLM.from_pretrained(tmp_path / "merged")), learned)


@pytest.mark.parametrize("implementation", ["auto", "reference", "grouped", "eager", "grouped_mm"])
@pytest.mark.parametrize("part", PARTS)
def test_an_adapter_of_any_parameter_is_at_work_and_equals_the_merged_one(
    part: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted({"target_parameters": [part]}, experts_implementation=implementation)
    ran = count_all(monkeypatch)
    with_adapter = logits(model)
    # Weights with adapters are not packed, see below.
    kernel = "grouped" if implementation == "auto" and part in EXPERTS else implementation
    assert ran == RUNS[kernel]
    assert (with_adapter - logits(base())).abs().max() > 0.05
    ids = tokens(2, 12)
    model.train()(ids, labels=ids).loss.backward()
    found = {name: g for name, g in gradients(model).items() if "lora_" in name}
    layers = LAYERS - 1 if "residual" in part else LAYERS  # the first router has no predecessor
    assert len(found) == 2 * layers
    assert all(gradient.any() for gradient in found.values())
    assert_close(logits(model.eval().merge_and_unload()), with_adapter)


@pytest.mark.parametrize("target", ["residual", "hidden"])
def test_a_routers_matrices_are_no_linear_layers_to_be_named_as_modules(target: str) -> None:
    """PEFT says so; as parameters they can be named, see above. ``all-linear`` leaves them alone."""
    with pytest.raises(ValueError, match=r"Target module Matrix\(\) is not supported"):
        adapted({"target_modules": [target]})
    names = {name.rsplit(".", 1)[-1] for name in adapted({"target_modules": "all-linear"}).targeted_module_names}
    assert names == set(ATTENTION)


def test_peft_refuses_to_adapt_a_parameter_and_one_below_it_at_once() -> None:
    """Having wrapped the router for its own weight, it does not find the router's residual: train the router whole."""
    with pytest.raises(AttributeError, match="has no attribute `residual`"):
        adapted({"target_parameters": ["router.weight", "router.residual.weight"]})


def test_weights_with_adapters_are_never_packed(calls: Counter[str]) -> None:
    """PEFT computes them anew at each call; each would be packed for that call alone."""
    model = adapted({"target_parameters": EXPERTS})
    gc.collect()
    before = len(packed_weights._cache)
    for _ in range(3):
        unmerged = logits(model)
    gc.collect()
    assert calls == {"grouped": 3 * LAYERS}
    assert len(packed_weights._cache) == before
    calls.clear()
    model.train()(tokens(2, 12), labels=tokens(2, 12)).loss.backward()
    assert calls == {"fused": LAYERS}

    calls.clear()
    model.eval().merge_adapter()  # through .data, which no version counter sees
    assert_close(logits(model), unmerged)
    assert calls == {"onednn": LAYERS, "pack": LAYERS}
    model.unmerge_adapter()
    assert_close(logits(model), unmerged)


def test_merging_is_seen_by_weights_that_were_packed_before(calls: Counter[str]) -> None:
    model = adapted({"target_parameters": EXPERTS})
    expected = logits(model)
    with model.disable_adapter():
        start = logits(model)
    assert calls["pack"] == LAYERS
    assert_close(logits(model.merge_and_unload()), expected)
    assert (start - expected).abs().max() > 0.05


def test_packed_experts_refuse_adapters_that_they_would_not_see() -> None:
    model = adapted({"target_parameters": EXPERTS})
    model.pack_for_inference()
    with pytest.raises(BackendUnavailable, match=r"packed experts do not see adapters .*; call unpack\(\), or merge"):
        logits(model)
    model.unpack()
    expected = logits(model)
    merged = model.merge_and_unload()
    merged.pack_for_inference()
    assert_close(logits(merged), expected)


def test_experts_with_adapters_are_not_quantised() -> None:
    model = adapted({"target_parameters": EXPERTS})
    with pytest.raises(ConfigError, match=r"experts are wrapped in ParamWrapper; merge the adapter, then quantise"):
        quantize_experts(model, "int8")


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_no_gradient_of_an_adapter(use_reentrant: bool) -> None:
    model = adapted(STORIES["everything"], router_aux_loss_coef=1.0).train()
    ids = tokens(2, 12)
    model(ids, labels=ids).loss.backward()
    plain = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()  # else reentrant checkpoints see nothing to compute gradients for
    model(ids, labels=ids).loss.backward()
    for name, gradient in gradients(model).items():
        assert_close(gradient, plain[name], name=name)


def test_an_adapter_on_bfloat16_weights_equals_the_merged_one() -> None:
    """In one layer and behind its router: elsewhere a rounding may turn a choice between two experts."""
    model = adapted({"target_parameters": EXPERTS}, num_hidden_layers=1).to(torch.bfloat16)
    unmerged = logits(model)
    assert unmerged.dtype is torch.bfloat16
    assert_close(logits(model.merge_and_unload()), unmerged)
