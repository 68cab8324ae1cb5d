"""torchao and bitsandbytes through ``from_pretrained(quantization_config=…)``, on a CPU: which modules they take.

Both take linear layers: the attention's. Routers are none, and stacked experts are none; ``quantize_experts`` takes
those.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor
from torchao.quantization import FqnToConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
from transformers import BitsAndBytesConfig, TorchAoConfig

from moepp.errors import BackendUnavailable
from moepp.layers import FFNExperts, QuantizedExperts
from moepp.model import MoEPPForCausalLM, quantize_experts

from ..model.factory import tiny_model, tokens

CONFIGS: dict[str, Any] = {
    "torchao int8": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
    "bitsandbytes int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes nf4": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
}
# Largest error over the largest logit that rounding attention to so many bits may make here; measured .057, .015, .19.
ERRORS = {"torchao int8": 0.1, "bitsandbytes int8": 0.05, "bitsandbytes nf4": 0.4}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model(hidden_size=64, intermediate_size=64, gate="tanh_mlp").save_pretrained(path)
    return path


def quantized(folder: Path, kind: str) -> MoEPPForCausalLM:
    return MoEPPForCausalLM.from_pretrained(folder, quantization_config=CONFIGS[kind]())


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(tokens(2, 12)).logits.float()


def quantized_names(model: torch.nn.Module) -> set[str]:
    """The parameters that are no plain floating-point tensors any more, without the layer's number."""
    kinds = {name: type(p) for name, p in model.named_parameters() if not p.is_floating_point()}
    kinds |= {name: type(p) for name, p in model.named_parameters() if type(p) is not torch.nn.Parameter}
    return {re.sub(r"\d+", "*", name) for name in kinds}


@pytest.mark.parametrize("kind", CONFIGS)
def test_attention_is_quantised_and_nothing_else(kind: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = MoEPPForCausalLM.from_pretrained(folder)
    assert not caplog.records
    model = quantized(folder, kind)
    assert "the FFN experts, stacked, stay as they are: moepp.model.quantize_experts" in caplog.text
    assert quantized_names(model) == {f"model.layers.*.self_attn.{name}.weight" for name in PROJECTIONS}
    same = dict(original.named_parameters())
    for name, parameter in model.named_parameters():
        assert ".self_attn." in name or torch.equal(parameter.float(), same[name].to(parameter.dtype).float()), name
    routers = [p for name, p in model.named_parameters() if ".router." in name]
    assert len(routers) == 3 + 3 + 2  # W, the tanh gate's, and W^g of all layers but the first
    expected = logits(original)
    error = (logits(model) - expected).abs().max() / expected.abs().max()
    assert 0 < error < ERRORS[kind]


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_was_quantised_is_saved_and_comes_back(kind: str, folder: Path, tmp_path: Path) -> None:
    model = quantized(folder, kind)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(MoEPPForCausalLM.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("kind", CONFIGS)
def test_quantize_experts_takes_the_experts_of_a_model_whose_attention_is_quantised(kind: str, folder: Path) -> None:
    model = quantized(folder, kind)
    before = logits(model)
    quantize_experts(model, "int8")
    experts = [m for m in model.modules() if isinstance(m, FFNExperts | QuantizedExperts)]
    assert [type(m) for m in experts] == [QuantizedExperts] * 3
    error = (logits(model) - before).abs().max() / before.abs().max()
    assert 0 < error < 0.1


def test_experts_that_torchao_quantised_are_refused_when_they_run(folder: Path) -> None:
    """It can be told to take them by name."""
    config = FqnToConfig({r"re:.*experts\.gate_up_proj": Int8WeightOnlyConfig()})
    model = MoEPPForCausalLM.from_pretrained(folder, quantization_config=TorchAoConfig(config))
    with pytest.raises(BackendUnavailable, match=r"type Int8Tensor are read by no kernel here; .*quantize_experts"):
        logits(model)


def test_torchao_has_no_4_bit_products_for_this_processor() -> None:
    """Once it has, this fails, and the kind moves up into the table above."""
    linear = torch.nn.Sequential(torch.nn.Linear(64, 64, dtype=torch.bfloat16))
    with pytest.raises(ImportError, match="mslk"):
        quantize_(linear, Int4WeightOnlyConfig(group_size=32))


def test_lora_trains_on_a_4_bit_model(folder: Path) -> None:
    model = prepare_model_for_kbit_training(quantized(folder, "bitsandbytes nf4"), use_gradient_checkpointing=False)
    targets: Any = {"target_modules": "all-linear", "target_parameters": ["experts.gate_up_proj"]}
    adapted = get_peft_model(model, LoraConfig(r=2, **targets)).train()
    ids = tokens(2, 12)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(6):
        loss = adapted(ids, labels=ids).loss
        loss.backward()
        assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
