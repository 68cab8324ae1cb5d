"""The central checks on a CUDA GPU, against the same model on the CPU (make gpu)."""

import copy

import pytest
import torch

from moepp import RoutingStats
from moepp.model import MoEPPForCausalLM

from ..tolerances import assert_close
from .factory import gradients, left_padded, tiny_model, tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning"),
]

IMPLEMENTATIONS = ["auto", "grouped", "reference", "triton", "grouped_mm", "batched_mm"]


def pair(**changes: object) -> tuple[MoEPPForCausalLM, MoEPPForCausalLM]:
    """The same model on the GPU and on the CPU."""
    # Full float32 matmuls: with TF32 allowed, ten bits of mantissa would be compared with twenty-three.
    assert torch.get_float32_matmul_precision() == "highest"
    cpu = tiny_model(**changes)
    return copy.deepcopy(cpu).cuda(), cpu


@pytest.mark.parametrize("capacity_factor", [None, 0.7])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float32_training_step_equals_the_cpus(implementation: str, capacity_factor: float | None) -> None:
    gpu, cpu = pair(capacity_factor=capacity_factor, router_aux_loss_coef=0.5)
    gpu.set_experts_implementation(implementation)
    ids, mask = left_padded([tokens(1, length, seed=length)[0] for length in (12, 7, 9)])
    labels = ids.masked_fill(mask == 0, -100)
    expected = cpu.train()(ids, attention_mask=mask, labels=labels, output_routing=True)
    out = gpu.train()(ids.cuda(), attention_mask=mask.cuda(), labels=labels.cuda(), output_routing=True)
    for ours, theirs in zip(out.routing, expected.routing, strict=True):
        assert torch.equal(ours.expert.cpu(), theirs.expert)
        assert torch.equal(ours.kept.cpu(), theirs.kept)
    assert_close(out.loss, expected.loss, name="loss")
    real = mask.bool().flatten().cpu()
    assert_close(out.logits.flatten(0, 1).cpu()[real], expected.logits.flatten(0, 1)[real], name="logits")
    out.loss.backward()
    expected.loss.backward()
    reference = gradients(cpu)
    for name, gradient in gradients(gpu).items():
        assert_close(gradient, reference[name], name=f"gradient of {name}")


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "whole model"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_training_step_is_near_the_cpus_float32(dtype: torch.dtype, autocast: bool) -> None:
    gpu, cpu = pair()
    if not autocast:
        gpu = gpu.to(dtype)
    ids = tokens(4, 16)
    with torch.autocast("cuda", dtype=dtype, enabled=autocast):
        out = gpu.train()(ids.cuda(), labels=ids.cuda(), output_routing=True)
    out.loss.backward()
    assert {layer.logits.dtype for layer in out.routing} == {torch.float32}
    assert out.loss.item() == pytest.approx(cpu.train()(ids, labels=ids).loss.item(), rel=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients(gpu).values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_greedy_generation_equals_the_cpus(implementation: str) -> None:
    """With grouped_mm transformers itself switches to batched_mm for decoding."""
    gpu, cpu = pair()
    gpu.set_experts_implementation(implementation)
    ids, mask = left_padded([tokens(1, length, seed=length)[0] for length in (3, 9, 6)])
    settings = {"max_new_tokens": 8, "do_sample": False}
    new = gpu.generate(ids.cuda(), attention_mask=mask.cuda(), **settings)
    assert torch.equal(new.cpu(), cpu.generate(ids, attention_mask=mask, **settings))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_no_loss_no_gradient_and_no_statistics(use_reentrant: bool) -> None:
    model, _ = pair(capacity_factor=1.1, router_aux_loss_coef=1.0)
    ids = tokens(2, 12).cuda()
    found = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        out = model.train()(ids, labels=ids, output_routing=True)
        stats = torch.stack([RoutingStats.of(routing).kept for routing in out.routing])
        out.loss.backward()
        found.append((out.loss, stats, gradients(model)))
    (loss, stats, grads), (loss_again, stats_again, grads_again) = found
    assert_close(loss_again, loss, name="loss")
    assert torch.equal(stats_again, stats)
    for name, gradient in grads.items():
        assert_close(grads_again[name], gradient, name=f"gradient of {name}")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("implementation", ["grouped", "triton"])
def test_model_compiles_into_one_graph(implementation: str) -> None:
    """In bfloat16: torch's own description of grouped_mm to the compiler takes nothing else."""
    model, _ = pair(router_aux_loss_coef=1.0)
    model.to(torch.bfloat16).set_experts_implementation(implementation)
    ids = tokens(2, 12).cuda()
    expected = model.train()(ids, labels=ids, use_cache=False).loss
    loss = torch.compile(model, fullgraph=True)(ids, labels=ids, use_cache=False).loss
    loss.backward()
    assert_close(loss, expected, like=torch.bfloat16, name="loss")
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize("implementation", ["grouped", "triton"])
def test_training_step_without_padding_does_not_synchronise(implementation: str) -> None:
    """With an attention mask transformers looks, once a forward pass, whether it hides anything."""
    model, _ = pair(capacity_factor=1.1)
    model.to(torch.bfloat16).set_experts_implementation(implementation)
    ids = tokens(2, 12).cuda()
    model.train()(ids, labels=ids, use_cache=False).loss.backward()  # builds kernels, which does wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(ids, labels=ids, use_cache=False).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
