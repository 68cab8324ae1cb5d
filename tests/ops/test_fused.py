"""The CPU's training backend: what it saves, whose memory it writes, and repeated backward passes."""

import pytest
import torch
from torch import Tensor

from moepp import expert_ffn

from ..tolerances import assert_close
from .test_expert_ffn import Case, D, F, K, case, doubled, loop

TOKENS = 200


def saved_bytes(c: Case, backend: str) -> int:
    """What autograd keeps for the backward pass, the caller's own tensors left out."""
    own = {t.untyped_storage().data_ptr() for t in c}
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = expert_ffn(*c, backend=backend)
    assert y.requires_grad
    return sum(found.values())


def test_saves_less_than_grouped_and_recompute_saves_nothing_per_assignment() -> None:
    c = case(TOKENS)
    grouped, fused, recompute = (saved_bytes(c, b) for b in ("grouped", "fused", "fused_recompute"))
    assert fused == TOKENS * K * 2 * F * 4
    assert fused <= 0.5 * grouped
    assert recompute == 0


@pytest.mark.parametrize("backend", ["fused", "fused_recompute"])
def test_two_backward_passes_through_one_graph_give_the_same(backend: str) -> None:
    c = case(TOKENS)
    y = expert_ffn(*c, backend=backend)
    first = torch.autograd.grad(y.square().sum(), c.leaves(), retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(y.square().sum(), c.leaves())
    for a, b, k in zip(first, second, kept, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, k)  # the second pass wrote elsewhere


def test_gradients_accumulate_over_micro_batches() -> None:
    whole = case(TOKENS)
    parts = Case(*(t.detach().clone() for t in whole))
    parts = parts._replace(gate_up=parts.gate_up.requires_grad_(), down=parts.down.requires_grad_())
    for part in range(4):
        rows = slice(part * TOKENS // 4, (part + 1) * TOKENS // 4)
        expert_ffn(parts.x[rows], parts.expert[rows], parts.weight[rows], parts.gate_up, parts.down).sum().backward()
    twin = doubled(whole)
    expected = torch.autograd.grad(loop(twin).sum(), (twin.gate_up, twin.down))
    assert_close(parts.gate_up.grad, expected[0])
    assert_close(parts.down.grad, expected[1])


def test_memory_of_freed_gradients_is_used_again_and_that_of_held_ones_is_not() -> None:
    c = case(TOKENS)

    def backward() -> int:
        expert_ffn(*c, backend="fused").sum().backward()
        return c.gate_up.grad.data_ptr()

    first = backward()
    c.gate_up.grad = None
    assert backward() == first
    held = c.gate_up.grad
    value = held.clone()
    c.gate_up.grad = None
    assert backward() != first
    assert torch.equal(held, value)
    view = c.gate_up.grad[0]  # a view holds it too
    value = view.clone()
    c.gate_up.grad = None
    backward()
    assert torch.equal(view, value)
    assert view.shape == (2 * F, D)


@pytest.mark.parametrize("backend", ["fused", "fused_recompute"])
def test_frozen_weights_and_tokens_need_no_gradient(backend: str) -> None:
    c = case(63)
    frozen = Case(*(t.detach() for t in c))._replace(weight=c.weight)
    y = expert_ffn(*frozen, backend=backend)
    (ours,) = torch.autograd.grad(y.sum(), [c.weight])
    twin = doubled(c)
    assert_close(ours, torch.autograd.grad(loop(twin).sum(), [twin.weight])[0])
