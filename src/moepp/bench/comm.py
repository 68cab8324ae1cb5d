"""What expert parallelism sends and how long it takes: one MoE layer over processes, MoE++ and its vanilla twin.

All processes time the same variants in turns, in an order that they draw alike, each step from a barrier on. A step is
forward and backward through one layer, its router included, with no other traffic than the layer's own. Its time is the
slowest process's. Its *exchange* is the time spent in all-to-alls, waiting for the others included; the rest is called
*compute*.
"""

import dataclasses
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..layers import MoE
from .comm_network import DEVICE, Link, NetworkUnavailable, build, sent_bytes, shape
from .comm_rows import CommRow
from .comm_workers import Workers
from .sizes import layer_config
from .work import LayerWork, exact_share_routing, twin_layers

WARMUP = 1
_LEAST_ROUNDS = 5
_SMALL = 20  # exchanges of one number, for the latency that is really there
VANILLA = "vanilla"


@dataclass(frozen=True, kw_only=True)
class CommCase:
    """What the variants of one run share."""

    size: str
    processes: int
    tokens: int
    """Of each process, in one step."""
    taus: Sequence[float]
    routing: Literal["synthetic", "untrained"]
    """Synthetic: every expert has exactly the share that tau's balance implies. Untrained: what a fresh router chooses,
    which tau does not change."""
    threads: int
    """Of each process."""
    rounds: int
    seconds: float
    """For all rounds together, once there are 5."""
    seed: int = 0
    dtype: str = "float32"


@dataclass
class Measured:
    """One variant in one process, round by round."""

    tau: float | None
    """None for the vanilla twin."""
    seconds: list[float] = field(default_factory=list)
    exchange: list[float] = field(default_factory=list)
    payload: list[int] = field(default_factory=list)
    """Bytes that all-to-alls sent to other processes, as computed from their arguments."""
    wire: list[int] = field(default_factory=list)
    """Bytes that the link sent, headers, acknowledgements and the barrier at the end included."""
    pairs: int = 0
    """(token, FFN expert) pairs of this process's tokens."""


def measure_comm(
    case: CommCase, links: Sequence[Link | None], *, say: Callable[[str], None] = lambda what: None
) -> list[CommRow]:
    """Measures one case over each link; None is no link: processes of one machine that talk as they like.

    Where links cannot be made, their rows give the reason.
    """
    rows = []
    for latency in dict.fromkeys(None if link is None else link.latency_ms for link in links):
        of = [link for link in links if (None if link is None else link.latency_ms) == latency]
        with Workers(case.processes + 1) as workers, tempfile.TemporaryDirectory() as folder:
            ranks = range(case.processes)
            try:
                if latency is not None:
                    build(workers, case.processes, latency)
                workers.call(_start, case, f"{folder}/store", latency is not None, among=ranks)
                for link in of:
                    say("no link" if link is None else str(link))
                    if link is not None:
                        shape(workers, case.processes, link)
                    found = workers.call(measure, case, among=ranks)
                    small = statistics.median(seconds for _, seconds in found)
                    rows += _rows(case, link, [one for one, _ in found], small)
            except NetworkUnavailable as unavailable:
                rows += [_row(case, link, None, reason=str(unavailable)) for link in of]
    return rows


def _start(rank: int, case: CommCase, store: str, linked: bool) -> None:
    torch.set_num_threads(case.threads)
    if linked:
        os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
    limit = timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=case.processes, timeout=limit)


def measure(rank: int, case: CommCase) -> tuple[list[Measured], float]:
    """Times all variants in this process; and the median time of an exchange of one number with each other process."""
    variants = _variants(rank, case)
    found = {name: Measured(tau, pairs=work.ffn_assignments) for name, (tau, work) in variants.items()}
    small = _small_exchange(case.processes)
    order, generator = list(variants), random.Random(case.seed)
    rounds, begin = case.rounds, time.perf_counter()
    with _watched() as watch:
        number = -WARMUP
        while number < rounds:
            generator.shuffle(order)
            for name in order:
                one = _step(variants[name][1], watch)
                if number >= 0:
                    _note(found[name], *one)
            number += 1
            if number == 0:  # all processes agree on how many rounds there is time for
                each = torch.tensor((time.perf_counter() - begin) / WARMUP)
                dist.all_reduce(each, dist.ReduceOp.MAX)
                rounds = max(_LEAST_ROUNDS, min(rounds, int(case.seconds / each.item())))
    return list(found.values()), small


@dataclass
class _Watch:
    seconds: float = 0.0
    bytes: int = 0


@contextmanager
def _watched() -> Iterator[_Watch]:
    """Sees all all-to-alls of this process, forward and backward."""
    watch, real = _Watch(), dist.all_to_all_single

    def watching(output: Tensor, given: Tensor, receive: Any = None, send: Any = None, group: Any = None) -> None:
        start = time.perf_counter()
        real(output, given, receive, send, group=group)
        watch.seconds += time.perf_counter() - start
        ranks = dist.get_world_size(group)
        own = len(given) // ranks if send is None else send[dist.get_rank(group)]
        watch.bytes += (len(given) - own) * given[0:1].nbytes if len(given) else 0

    dist.all_to_all_single = watching
    try:
        yield watch
    finally:
        dist.all_to_all_single = real


def _step(work: LayerWork, watch: _Watch) -> tuple[float, float, int, int]:
    """Forward and backward from a barrier on: seconds, those in exchanges, bytes by computation and by the link."""
    work.layer.zero_grad()
    x = work.x.detach().requires_grad_()
    dist.barrier()
    before = sent_bytes() or 0
    watch.seconds, watch.bytes = 0.0, 0
    start = time.perf_counter()
    y = work.forward(work.layer, x)
    y.backward(x.detach())
    seconds = time.perf_counter() - start
    spent, given = watch.seconds, watch.bytes
    dist.barrier()
    return seconds, spent, given, (sent_bytes() or 0) - before


def _note(found: Measured, seconds: float, exchange: float, payload: int, wire: int) -> None:
    found.seconds.append(seconds)
    found.exchange.append(exchange)
    found.payload.append(payload)
    found.wire.append(wire)


def _small_exchange(processes: int) -> float:
    given = torch.zeros(processes)
    seconds = []
    for _ in range(_SMALL):
        dist.barrier()
        start = time.perf_counter()
        dist.all_to_all_single(torch.empty_like(given), given)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _variants(rank: int, case: CommCase) -> dict[str, tuple[float | None, LayerWork]]:
    """By name, each with its tau. All share the FFN experts, of which this process keeps its own."""
    [layer], [twin] = twin_layers(layer_config(case.size), 1, dtype=getattr(torch, case.dtype), device="cpu")
    _distribute(layer.train())
    twin.train()
    seed = case.seed * case.processes + rank
    found: dict[str, tuple[float | None, LayerWork]] = {VANILLA: (None, _work(twin, case, None, seed))}
    for tau in case.taus:
        found[f"tau {tau:g}"] = (tau, _work(layer, case, tau, seed))
    return found


def _work(layer: MoE, case: CommCase, tau: float | None, seed: int) -> LayerWork:
    config = layer.config if tau is None else dataclasses.replace(layer.config, tau=tau)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(case.tokens, config.hidden_size, generator=generator).to(layer.router.weight.dtype)
    previous = torch.randn(case.tokens, config.layout().num_experts, generator=generator)
    if case.routing == "synthetic":
        return LayerWork(layer, x, exact_share_routing(config, case.tokens, seed), previous, prescribed=True)
    with torch.no_grad():
        return LayerWork(layer, x, layer.router(x, previous), previous)


def _distribute(layer: nn.Module) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from transformers.distributed.expert_parallel import apply_expert_parallelism

    from ..model.expert_parallel import NAME

    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("ep", "tp"))
    plan = {f"experts.{name}": "grouped_gemm" for name in ("gate_up_proj", "down_proj")}
    plan["experts"] = "ep_dispatch_experts"
    apply_expert_parallelism(layer, mesh["ep"], mesh["tp"], plan, ep_implementation=NAME)


def _rows(case: CommCase, link: Link | None, found: Sequence[Sequence[Measured]], small: float) -> list[CommRow]:
    """One per variant, from what each process measured."""
    by_variant = list(zip(*found, strict=True))
    steps = [[max(times) for times in zip(*(one.seconds for one in of), strict=True)] for of in by_variant]
    rows = []
    for of, seconds in zip(by_variant, steps, strict=True):
        gains = [twin / own for twin, own in zip(steps[0], seconds, strict=True)]
        exchange = [statistics.mean(times) for times in zip(*(one.exchange for one in of), strict=True)]
        whole = [statistics.mean(times) for times in zip(*(one.seconds for one in of), strict=True)]
        values = {
            "rounds": len(seconds),
            "step_s": statistics.median(seconds),
            "step_iqr_s": _iqr(seconds),
            "exchange_s": statistics.median(exchange),
            "compute_s": statistics.median(a - b for a, b in zip(whole, exchange, strict=True)),
            "gain": statistics.median(gains),
            "gain_iqr": _iqr(gains),
            "pairs": statistics.mean(one.pairs for one in of),
            "payload_bytes": statistics.mean(statistics.median(one.payload) for one in of),
            "wire_bytes": None if link is None else statistics.mean(statistics.median(one.wire) for one in of),
            "small_exchange_s": small,
        }
        rows.append(_row(case, link, of[0].tau, **values))
    return rows


def _row(case: CommCase, link: Link | None, tau: float | None, **values: Any) -> CommRow:
    return CommRow(
        variant="vanilla" if tau is None else "moepp",
        tau=tau,
        size=case.size,
        dtype=case.dtype,
        processes=case.processes,
        threads=case.threads,
        tokens=case.tokens,
        routing=case.routing,
        seed=case.seed,
        linked=link is not None,
        bandwidth_mbit=None if link is None else link.bandwidth_mbit,
        latency_ms=0.0 if link is None else link.latency_ms,
        **values,
    )


def _iqr(values: Sequence[float]) -> float:
    first, _, third = statistics.quantiles(values, n=4)
    return third - first
