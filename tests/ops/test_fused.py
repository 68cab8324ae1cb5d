"""The CPU's training backend: what it saves, whose memory it writes, and repeated backward passes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from moepp import FFNExperts, MoEConfig, expert_ffn
from moepp.ops import memory

from ..tolerances import assert_close
from .test_expert_ffn import Case, D, F, K, N, case, doubled, loop

TOKENS = 200
CONFIG = MoEConfig(hidden_size=D, intermediate_size=F, num_ffn_experts=N)


def saved_bytes(c: Case, run: Callable[[], Tensor]) -> int:
    """What autograd keeps for the backward pass, the caller's own tensors left out."""
    own = {t.untyped_storage().data_ptr() for t in c}
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = run()
    assert y.requires_grad
    return sum(found.values())


def test_saves_at_most_half_of_transformers_grouped_mm_and_recompute_nothing_but_tables() -> None:
    c = case(TOKENS)
    config = MixtralConfig(hidden_size=D, intermediate_size=F, num_local_experts=N, num_experts_per_tok=K)
    config._experts_implementation = "grouped_mm"
    peer = MixtralExperts(config)
    peer.gate_up_proj, peer.down_proj = torch.nn.Parameter(c.gate_up.detach()), torch.nn.Parameter(c.down.detach())
    own = Case(c.x, c.expert, c.weight, peer.gate_up_proj, peer.down_proj)
    grouped_mm = saved_bytes(own, lambda: peer(c.x, c.expert, c.weight))
    ours = {b: saved_bytes(c, lambda b=b: expert_ffn(*c, backend=b)) for b in ("fused", "fused_recompute")}
    # Where pairs come from and go to is kept besides: three integers for each, whatever the sizes.
    assert ours == {"fused": TOKENS * K * 2 * F * 4, "fused_recompute": 0}
    assert ours["fused"] + 24 * TOKENS * K <= 0.5 * grouped_mm


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
    assert frozen.gate_up not in memory._kept
    assert frozen.down not in memory._kept


def test_accumulating_gradients_keeps_no_second_memory() -> None:
    c = case(TOKENS)
    for _ in range(3):
        expert_ffn(*c, backend="fused").sum().backward()
    assert memory._kept[c.gate_up].data_ptr() == c.gate_up.grad.untyped_storage().data_ptr()


def test_shared_memory_is_not_used_again() -> None:
    c = case(TOKENS)
    expert_ffn(*c, backend="fused").sum().backward()
    before = c.gate_up.grad.share_memory_().data_ptr()
    c.gate_up.grad = None
    expert_ffn(*c, backend="fused").sum().backward()
    assert c.gate_up.grad.data_ptr() != before


@pytest.mark.parametrize("backend", ["fused", "fused_recompute"])
def test_backward_inside_of_autocast_is_as_exact_as_outside(backend: str) -> None:
    c = case(63)
    y = expert_ffn(*c, backend=backend).sum()
    with torch.autocast("cpu", torch.bfloat16):
        ours = torch.autograd.grad(y, c.leaves())
    twin = doubled(c)
    for a, b in zip(ours, torch.autograd.grad(loop(twin).sum(), twin.leaves()), strict=True):
        assert_close(a, b)


def test_a_second_derivative_is_refused() -> None:
    """Another backend, such as grouped, has it."""
    c = case(63)
    (first,) = torch.autograd.grad(expert_ffn(*c, backend="fused").square().sum(), [c.x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def _train_on_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    whole = case(64)
    module = FFNExperts(CONFIG, backend="fused")
    module.load_state_dict({"gate_up_proj": whole.gate_up.detach(), "down_proj": whole.down.detach()})
    parallel = torch.nn.parallel.DistributedDataParallel(module)
    rows = slice(rank * 32, (rank + 1) * 32)
    _steps(parallel, whole.x.detach()[rows], whole.expert[rows], whole.weight.detach()[rows])
    if rank == 0:
        torch.save(module.state_dict(), f"{folder}/trained.pt")
    torch.distributed.destroy_process_group()


def _steps(module: torch.nn.Module, x: Tensor, expert: Tensor, weight: Tensor) -> None:
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        module(x, expert, weight).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    """DistributedDataParallel's hooks see every gradient, and its buckets are not written over."""
    torch.multiprocessing.spawn(_train_on_a_rank, (str(tmp_path),), nprocs=2)
    whole = case(64)
    module = FFNExperts(CONFIG, backend="reference")
    module.load_state_dict({"gate_up_proj": whole.gate_up.detach(), "down_proj": whole.down.detach()})
    _steps(module, whole.x.detach(), whole.expert, whole.weight.detach())
    for name, trained in torch.load(tmp_path / "trained.pt").items():
        assert_close(trained, module.state_dict()[name], name=name)
        assert (trained - getattr(whole, name.removesuffix("_proj"))).abs().max() > 1e-5
