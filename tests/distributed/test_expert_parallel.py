"""Expert parallelism: what is on the wire, and that nothing else changes.

The layer on several processes is compared with the same layer on one, which runs each process's tokens in turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers.distributed import DistributedConfig
from transformers.distributed.expert_parallel import apply_expert_parallelism

from moepp import MoE, MoEConfig
from moepp.errors import ConfigError
from moepp.model import MoEPPForCausalLM
from moepp.model.expert_parallel import NAME, FFNPairsEP, rows_computed

from ..factory import randn, random_moe
from ..model.factory import fill, tiny_config, tokens
from ..tolerances import assert_close
from .processes import run_processes
from .wire import Sent, Wire

D, N, K = 16, 8, 2
CONFIG = MoEConfig(hidden_size=D, intermediate_size=24, num_ffn_experts=N, top_k=K, capacity_factor=1.1)
E = CONFIG.layout().num_experts


@dataclass(frozen=True)
class Case:
    tokens: Sequence[int]
    """Of each rank."""
    disabled: Sequence[int] = ()
    """Experts that nobody may choose."""
    checkpointing: bool = False
    autocast: bool = False
    backend: str = "auto"

    def x(self, rank: int) -> Tensor:
        return randn(self.tokens[rank], D, seed=100 + rank, dtype=torch.float32)

    def previous(self, rank: int) -> Tensor:
        return randn(self.tokens[rank], E, seed=200 + rank, dtype=torch.float32)

    def run(self, layer: MoE, x: Tensor, rank: int) -> tuple[Tensor, Any]:
        bias = torch.zeros(E)
        bias[list(self.disabled)] = -torch.inf

        def forward(x: Tensor, previous: Tensor) -> Any:
            return layer(x, previous, selection_bias=bias)

        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            if self.checkpointing:
                return checkpoint(forward, x, self.previous(rank), use_reentrant=False)  # pyright: ignore[reportReturnType]
            return forward(x, self.previous(rank))


def loss(y: Tensor, rank: int) -> Tensor:
    return (y.float() * randn(*y.shape, seed=300 + rank, dtype=torch.float32)).sum()


def distributed(layer: MoE) -> MoE:
    """The layer with this rank's experts only."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("ep", "tp"))
    weights = {f"experts.{name}": "grouped_gemm" for name in ("gate_up_proj", "down_proj")}
    plan = weights | {"experts": "ep_dispatch_experts"}
    return apply_expert_parallelism(layer, mesh["ep"], mesh["tp"], plan, ep_implementation=NAME)


def pairs(routing: Any, ranks: int) -> tuple[int, ...]:
    """(token, FFN expert) pairs that were kept, by the rank of the expert; counted one by one."""
    count = [0] * ranks
    for experts, kept in zip(routing.expert.tolist(), routing.kept.tolist(), strict=True):
        for expert, stays in zip(experts, kept, strict=True):
            if stays and expert < N:
                count[expert // (N // ranks)] += 1
    return tuple(count)


@dataclass(frozen=True)
class Seen:
    """What a rank saw, and what it should have."""

    forward: list[Sent]
    backward: list[Sent]
    to: tuple[int, ...]
    """Pairs for each rank's experts, from the routing."""
    assignments: int
    dropped_ffn: int
    came: int
    """Rows that its experts computed, as a trainer reads it."""


def compare(case: Case) -> Seen:
    """Runs the layer on all ranks and, here, on one; the tensors must be equal."""
    rank, world = dist.get_rank(), dist.get_world_size()
    layer = distributed(random_moe(CONFIG, dtype=torch.float32, backend=case.backend))
    wire = Wire()
    x = case.x(rank).requires_grad_()
    with wire:
        y, routing = case.run(layer, x, rank)
        forward = list(wire.sent)
        came = rows_computed(layer)
        loss(y, rank).backward()
    assert not wire.others
    assert rows_computed(layer) == came

    single = random_moe(CONFIG, dtype=torch.float32, backend=case.backend)
    for other in range(world):
        of_other = case.x(other).requires_grad_()
        expected, same = case.run(single, of_other, other)
        if other != rank:
            loss(expected, other).backward()
            continue
        mine = [p for name, p in single.named_parameters() if "experts" not in name]
        assert torch.equal(routing.expert, same.expert)
        assert torch.equal(routing.kept, same.kept)
        assert_close(y, expected, name="output")
        assert y.dtype == expected.dtype
        before = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in mine]
        loss(expected, other).backward()
        assert_close(x.grad, of_other.grad, name="gradient of x", like=y.dtype)
        grads = [p.grad for name, p in layer.named_parameters() if "experts" not in name]
        for grad, after, earlier in zip(grads, mine, before, strict=True):
            assert_close(grad, after.grad - earlier, name="gradient of what every rank has", like=y.dtype)
    own = slice(rank * N // world, (rank + 1) * N // world)
    for name in ("gate_up_proj", "down_proj"):
        grad = getattr(layer.experts, name).grad
        assert isinstance(grad, DTensor), f"{name} has no gradient, and FSDP would wait for it"
        assert_close(grad.to_local(), getattr(single.experts, name).grad[own], name=name, like=y.dtype)
    ffn = routing.expert < N
    dropped = int((ffn & ~routing.kept).sum())
    return Seen(forward, wire.sent[len(forward) :], pairs(routing, world), K * len(x), dropped, *came)


def check(case: Case) -> list[Seen]:
    """Runs the case and compares what entered the all-to-alls with the pairs of the routing."""
    world = len(case.tokens)
    seen = run_processes(world, compare, case)
    dtype = torch.bfloat16 if case.autocast else torch.float32
    for rank, one in enumerate(seen):
        came = tuple(other.to[rank] for other in seen)
        counts = Sent(world, N // world, torch.int64, (1,) * world)
        tokens, results = Sent(sum(one.to), D, dtype, one.to), Sent(sum(came), D, dtype, came)
        forward = [counts, tokens, results]
        assert one.forward == forward
        assert one.backward == [*(forward if case.checkpointing else []), tokens, results]
        assert one.came == sum(came)
    return seen


RAGGED = {2: (63, 40), 4: (63, 5, 1, 40)}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("world", [2, 4])
def test_exactly_the_ffn_pairs_that_capacity_keeps_are_sent(world: int, checkpointing: bool) -> None:
    seen = check(Case(RAGGED[world], checkpointing=checkpointing))
    sent = sum(sum(one.to) for one in seen)
    assert sum(one.dropped_ffn for one in seen) > 0
    assert 0 < sent + sum(one.dropped_ffn for one in seen) < sum(one.assignments for one in seen)
    counts, passes = 8 * N, 2 if checkpointing else 1
    for one in seen:
        # What it sends of its own tokens and gives back to others, forward and backward, in float32.
        rows = (passes + 1) * (sum(one.to) + one.came)
        assert sum(part.bytes for part in [*one.forward, *one.backward]) == passes * counts + rows * 4 * D


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("world", [2, 4])
def test_batches_of_zero_computation_experts_send_no_rows(world: int, checkpointing: bool) -> None:
    for one in check(Case(RAGGED[world], disabled=range(N), checkpointing=checkpointing)):
        assert sum(one.to) == one.came == 0


@pytest.mark.parametrize("backend", ["reference", "grouped", "fused"])
def test_every_kernel_gives_experts_without_rows_zero_gradients(backend: str) -> None:
    first, *_ = check(Case((63, 40), disabled=range(N // 2), backend=backend))
    assert first.came == 0 < sum(first.to)


@pytest.mark.parametrize("world", [2, 4])
def test_a_rank_may_have_no_tokens_and_another_no_rows(world: int) -> None:
    seen = check(Case((0, *RAGGED[world][1:]), disabled=range(N // world, 2 * N // world)))
    assert sum(seen[0].to) == 0 < seen[0].came
    assert seen[1].came == 0


def test_all_ranks_may_have_no_tokens() -> None:
    for one in check(Case((0, 0))):
        assert sum(one.to) == one.came == 0


def test_under_autocast_half_the_bytes_are_sent() -> None:
    check(Case(RAGGED[2], autocast=True))


class _Mesh:
    def size(self) -> int:
        return 2


def test_tensor_parallel_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"distributed\.tp_size=2 does not go with ep_implementation='moepp'"):
        FFNPairsEP(nn.Linear(1, 1), _Mesh(), _Mesh())


def model_gradients(ep_size: int, disabled: Sequence[int], experts: str, checkpointing: bool) -> None:
    """A whole model on 4 ranks, sharded by FSDP, against one process; its shared expert sends no rows."""
    rank, world = dist.get_rank(), dist.get_world_size()
    config = tiny_config(num_hidden_layers=2, capacity_factor=1.1, num_shared_experts=1, experts_implementation=experts)
    ids = [tokens(2, 12, seed=other) for other in range(world)]
    bias = torch.zeros(config.moe.layout().num_experts)
    bias[list(disabled)] = -torch.inf

    def built() -> MoEPPForCausalLM:
        model = MoEPPForCausalLM(config).train()
        fill(model)
        if checkpointing:
            model.gradient_checkpointing_enable()
        return model

    single = built()
    losses = [single(other, labels=other, selection_bias=bias).loss for other in ids]
    (sum(losses) / world).backward()
    engine, _, mesh = MoEPPForCausalLM.prepare_distribute_model(DistributedConfig(fsdp_size=world, ep_size=ep_size))
    model = MoEPPForCausalLM.maybe_distribute_model(built(), engine, mesh)
    loss = model(ids[rank], labels=ids[rank], selection_bias=bias).loss
    loss.backward()
    assert_close(loss, losses[rank], name="loss")
    computed = rows_computed(model)
    assert len(computed) == 2, "ep_implementation='auto' is not ours"
    assert any(computed) == (len(disabled) == 0)
    for (name, ours), theirs in zip(model.named_parameters(), single.parameters(), strict=True):
        assert isinstance(ours.grad, DTensor), name
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        assert_close(ours.grad.full_tensor(), expected, name=name)


@pytest.mark.parametrize("ep_size", [2, 4])
@pytest.mark.parametrize("experts", ["auto", "grouped_mm"])
def test_a_model_has_the_gradients_of_one_process(ep_size: int, experts: str) -> None:
    """With ``ep_size=2`` two ranks share each expert, and FSDP reduces its gradients between them."""
    run_processes(4, model_gradients, ep_size, (), experts, False)


@pytest.mark.parametrize(("experts", "checkpointing"), [("auto", False), ("auto", True), ("grouped_mm", True)])
def test_a_model_whose_tokens_all_choose_zero_computation_experts_does_not_hang(
    experts: str, checkpointing: bool
) -> None:
    run_processes(4, model_gradients, 2, range(4), experts, checkpointing)
