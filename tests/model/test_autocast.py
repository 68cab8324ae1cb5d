"""Half precision: the router stays in float32, everything else may round, and nothing overflows."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moepp import MoE
from moepp.model import MoEPPForCausalLM

from ..factory import randn
from ..tolerances import assert_close
from .factory import fill, gradients, tiny_config, tiny_model, tokens

HALVES = [torch.bfloat16, torch.float16]
IMPLEMENTATIONS = ["auto", "reference", "triton", "grouped_mm", "batched_mm"]
# A near tie may be decided the other way after rounding, which moves a token by a whole expert. Losses are means over
# many tokens and forgive that; single elements don't.
LOSS_TOLERANCE = 0.02


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def similarity(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Cosine between two gradients of the whole model."""
    flat = [torch.cat([g.flatten().double() for g in grads.values()]) for grads in (ours, theirs)]
    return F.cosine_similarity(*flat, dim=0).item()


def test_router_works_in_float32_under_autocast() -> None:
    model, ids = tiny_model(), tokens(4, 16)
    seen: list[tuple[Tensor, Tensor | None]] = []
    for layer in model.model.layers:
        layer.mlp.router.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[1])))
    with autocast(), torch.no_grad():
        out = model(ids, labels=ids, output_routing=True)
    assert out.logits.dtype == torch.bfloat16  # autocast did happen
    for layer, (x, previous), routing in zip(model.model.layers, seen, out.routing, strict=True):
        assert {t.dtype for t in (routing.logits, routing.probs, routing.weight)} == {torch.float32}
        router = layer.mlp.router
        expected = x.double() @ router.weight.double().T
        if router.residual is not None:
            expected = expected + previous.double() @ router.residual.weight.double().T
        # To the digits of float32: a product in bfloat16 would keep three of them.
        assert_close(routing.logits, expected, name="router logits")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_trains_near_float32(implementation: str) -> None:
    model, ids = tiny_model(capacity_factor=1.1, experts_implementation=implementation).train(), tokens(4, 16)
    exact = model(ids, labels=ids)
    exact.loss.backward()
    reference = gradients(model)
    with autocast():
        out = model(ids, labels=ids)
    out.loss.backward()
    found = gradients(model)
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=LOSS_TOLERANCE)
    assert out.balance_loss.item() == pytest.approx(exact.balance_loss.item(), rel=LOSS_TOLERANCE)
    assert not torch.equal(out.loss, exact.loss)
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert all(g.isfinite().all() and g.any() for g in found.values())
    assert similarity(found, reference) > 0.95


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_autocast_trains_through_checkpoints() -> None:
    """What is recomputed in the backward pass, outside the context, is recomputed in the same precision."""
    model, ids = tiny_model().train(), tokens(4, 16)
    with autocast():
        model(ids, labels=ids).loss.backward()
    plain = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with autocast():
        loss = model(ids, labels=ids).loss
    loss.backward()
    for name, gradient in gradients(model).items():
        # Parts of a weight's gradient are summed in bfloat16, in another order.
        assert_close(gradient, plain[name], like=torch.bfloat16, name=f"gradient of {name}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_whole_model_in_half_precision_is_near_float32(dtype: torch.dtype, implementation: str) -> None:
    ids = tokens(4, 16)
    model = tiny_model(capacity_factor=1.1).train()
    exact = model(ids, labels=ids)
    exact.loss.backward()
    reference = gradients(model)
    half = tiny_model(capacity_factor=1.1, experts_implementation=implementation).train().to(dtype)
    out = half(ids, labels=ids, output_routing=True)
    out.loss.backward()
    found = gradients(half)
    assert out.logits.dtype == dtype
    assert {layer.logits.dtype for layer in out.routing} == {torch.float32}
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=LOSS_TOLERANCE)
    assert {g.dtype for g in found.values()} == {dtype}
    assert all(g.isfinite().all() for g in found.values())
    assert similarity(found, reference) > 0.95


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_layer_in_half_precision_is_near_float32(dtype: torch.dtype) -> None:
    """On the same rounded weights and tokens, where a float32 router chooses the same experts."""
    half = MoE(tiny_config().moe)
    fill(half)
    half = half.to(dtype)
    exact = MoE(tiny_config().moe)
    exact.load_state_dict(half.state_dict())
    x, previous = randn(64, 32, seed=1, dtype=dtype), randn(64, 8, seed=2, dtype=torch.float32)
    y, routing = half(x, previous)
    expected, reference = exact(x.float(), previous)
    assert y.dtype == dtype
    assert torch.equal(routing.expert, reference.expert)
    assert_close(routing.weight, reference.weight, name="weights")
    assert_close(y, expected, name="output")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_generation_in_half_precision_gives_tokens(dtype: torch.dtype) -> None:
    model: MoEPPForCausalLM = tiny_model().to(dtype)
    ids = tokens(2, 5)
    new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)[:, 5:]
    assert new.shape == (2, 4)
    assert model(ids).logits.isfinite().all()
