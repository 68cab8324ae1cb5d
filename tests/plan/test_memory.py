"""The modelled part of a plan's memory, against what autograd saves."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from moepp.model import MoEPPConfig, MoEPPForCausalLM
from moepp.plan import USABLE, Batch, Cluster, Sizes, layer_activations, make_plan, make_plans, parameter_shapes, units
from tests.model.factory import tiny_config, tiny_model, tokens

BATCH = Batch(sequences=2, sequence_length=48, micro_batches=1, bf16=True, checkpointing=False)
A100S = Cluster(
    gpu_memory=80 * 2**30, gpus_per_node=8, peak=312e12, utilisation=0.4, node_bandwidth=300e9, bandwidth=25e9
)


def config(**changes: Any) -> MoEPPConfig:
    """Widths in the usual proportions; every assignment is an FFN expert's, so that all rows are there to be saved."""
    fields = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 4, "num_hidden_layers": 3}
    return tiny_config(**(fields | {"num_copy_experts": 0, "num_zero_experts": 0} | changes))


def saved_bytes(config: MoEPPConfig, checkpointing: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
    model: MoEPPForCausalLM = tiny_model(config).train()
    model.set_experts_implementation("grouped")  # a GPU's default
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def ffn_only(routing: Any) -> Any:
        return routing._replace(expert=routing.expert % config.num_ffn_experts)

    ids = tokens(BATCH.sequences, BATCH.sequence_length)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, labels=ids, use_cache=False, routing_edit=ffn_only)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all", "checkpointing"])
@pytest.mark.parametrize("kind", ["ours", "vanilla", "shared"])
def test_a_layer_saves_about_what_the_plan_says(checkpointing: bool, kind: str) -> None:
    shared = 2 if kind == "shared" else 0
    small, large = (config(num_hidden_layers=layers, num_shared_experts=shared) for layers in (2, 4))
    if kind == "vanilla":
        small, large = small.vanilla(), large.vanilla()
    measured = (saved_bytes(large, checkpointing) - saved_bytes(small, checkpointing)) / 2
    with_checkpoints, without = layer_activations(small, units(parameter_shapes(small), Sizes()), BATCH, Sizes())
    assert (with_checkpoints if checkpointing else without) == pytest.approx(measured, rel=0.05)


def test_whole_gradients_wait_only_where_the_trainer_keeps_them() -> None:
    shapes = parameter_shapes(config())

    def accumulated(micro_batches: int, **sizes: int) -> int:
        batch = Batch(sequences=1, sequence_length=8, micro_batches=micro_batches, bf16=False, checkpointing=False)
        return make_plan(config(), shapes, batch, Sizes(**sizes), A100S).memory.accumulated

    assert accumulated(4, fsdp=4) == 0, "one micro-batch each is reduced at once"
    assert accumulated(8, fsdp=4) == 4 * sum(torch.Size(shape).numel() for shape in shapes.values())
    assert accumulated(8, fsdp=2, replicate=2) == 0
    assert accumulated(8) == 0, "one process has them whole as they are"


def test_the_best_sizes_come_first_and_those_that_do_not_fit_last() -> None:
    batch = Batch(sequences=2, sequence_length=48, micro_batches=16, bf16=True, checkpointing=False)
    shapes = parameter_shapes(config())
    everything = make_plans(config(), shapes, batch, 8, A100S)
    assert all(plan.fits for plan in everything)
    assert [plan.step for plan in everything] == sorted(plan.step for plan in everything)
    middle = sorted(plan.memory.total for plan in everything)[len(everything) // 2]
    tight = dataclasses.replace(A100S, gpu_memory=middle / USABLE)
    fit = [plan.fits for plan in make_plans(config(), shapes, batch, 8, tight)]
    assert fit == sorted(fit, reverse=True)
    assert {True, False} == set(fit)
