"""Programs without Python: ``torch.export``, transformers' exporters, ONNX Runtime."""

import pytest
import torch
from torch import Tensor

from moepp.model import MoEPPForCausalLM

from ..model.factory import tiny_model, tokens
from ..tolerances import assert_close

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.filterwarnings("ignore"),  # torch's and transformers' own, about each other
]


def inputs(batch: int, length: int) -> dict[str, Tensor]:
    ids = tokens(batch, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model: MoEPPForCausalLM, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**given, use_cache=False).logits


@pytest.mark.parametrize("implementation", ["auto", "batched_mm"])
def test_torch_export_gives_equal_logits(implementation: str) -> None:
    model, given = tiny_model(experts_implementation=implementation, num_hidden_layers=2), inputs(2, 8)
    program = torch.export.export(model, (given["input_ids"],), {"use_cache": False})
    other = tokens(2, 8, seed=5)
    with torch.no_grad():
        assert_close(program.module()(other, use_cache=False).logits, model(other).logits)
    ours = {str(node.target) for node in program.graph.nodes if "moepp" in str(node.target)}
    assert ours == ({"moepp.grouped_product.default"} if implementation == "auto" else set())


def test_transformers_exporter_gives_a_program_for_every_batch_and_length() -> None:
    from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

    model = tiny_model(num_hidden_layers=2)
    exported = DynamoExporter().export(model, inputs(2, 8), config=DynamoConfig(dynamic=True))
    given = inputs(3, 11)
    assert_close(exported(**given).logits, logits(model, given))


def test_onnx_runtime_gives_equal_logits() -> None:
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    model = tiny_model(experts_implementation="batched_mm", num_hidden_layers=2, num_shared_experts=1)
    given = inputs(2, 8)
    exported = OnnxExporter().export(model, given, config=OnnxConfig(dynamic=False))
    other = inputs(2, 8) | {"input_ids": tokens(2, 8, seed=5)}
    assert_close(exported(**other).logits, logits(model, other))
