"""What expert parallelism sends: measured in two processes, with links between them where that is permitted."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from moepp.bench import CommCase, CommRow, Link, comm_network, comm_workers, layer_config, measure_comm
from moepp.bench.comm_network import NetworkUnavailable, build, sent_bytes, shape
from moepp.bench.comm_workers import WorkerFailed, Workers
from moepp.bench.work import exact_share_routing
from moepp.errors import ConfigError

from ..distributed import processes

TOKENS, TAUS = 16, (0.25, 1.0)


def case(**changes: Any) -> CommCase:
    fields = {"size": "tiny", "processes": 2, "tokens": TOKENS, "taus": TAUS, "routing": "synthetic", "threads": 1}
    return CommCase(**(fields | {"rounds": 5, "seconds": 0.1} | changes))


@pytest.fixture(scope="module", autouse=True)
def _one_server_for_all_tests() -> Iterator[None]:
    """A process forks all its workers from one server, which has the imports of whoever starts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm_workers, "_PRELOAD", processes._PRELOAD)
        yield


@pytest.fixture(scope="module")
def local() -> list[CommRow]:
    return measure_comm(case(), [None])


def test_there_is_a_row_for_each_variant_with_all_it_measured(local: list[CommRow]) -> None:
    assert [(row.variant, row.tau) for row in local] == [("vanilla", None), *(("moepp", tau) for tau in TAUS)]
    for row in local:
        assert row.rounds == 5
        assert row.reason is None
        assert not row.linked
        assert row.wire_bytes is None
        assert min(row.step_s or 0, row.exchange_s or 0, row.compute_s or 0, row.small_exchange_s or 0) > 0
        assert (row.exchange_s or 0) < (row.step_s or 0)
    assert local[0].gain == 1.0


def expected_bytes(row: CommRow) -> float:
    """The mean over both processes, from their routings."""
    config = layer_config("tiny")
    config = config.vanilla() if row.tau is None else type(config)(**{**_fields(config), "tau": row.tau})
    experts, away = config.num_ffn_experts, 0
    for rank in range(2):
        chosen = exact_share_routing(config, TOKENS, seed=rank).expert.flatten().tolist()
        away += sum(expert < experts and expert // (experts // 2) != rank for expert in chosen)
    rows = 4 * away / 2  # tokens, results and both gradients; what one sends, the other gives back
    return rows * config.hidden_size * 4 + 8 * experts / 2


def _fields(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__slots__}


def test_payload_is_that_of_the_pairs_for_the_other_process(local: list[CommRow]) -> None:
    for row in local:
        assert row.payload_bytes == expected_bytes(row)
    assert local[1].payload_bytes < local[2].payload_bytes < local[0].payload_bytes  # pyright: ignore[reportOptionalOperand]


def test_untrained_routing_is_the_routers_own() -> None:
    vanilla, ours = measure_comm(case(taus=(0.75,), routing="untrained"), [None])
    assert vanilla.pairs == 2 * TOKENS
    assert 0 < (ours.pairs or 0) < 2 * TOKENS


def permitted() -> str | None:
    """Why links cannot be tested here."""
    with Workers(3) as workers:
        try:
            build(workers, 2, 0.0)
        except NetworkUnavailable as reason:
            return str(reason)
    return None


@pytest.fixture(scope="module")
def _namespaces() -> None:
    if (reason := permitted()) is not None:
        pytest.skip(reason)


@pytest.mark.usefixtures("_namespaces")
def test_links_count_what_they_send_and_delay_it(local: list[CommRow]) -> None:
    devices = os.listdir("/sys/class/net")
    rows = measure_comm(case(), [Link(None), Link(50.0), Link(50.0, latency_ms=3.0)])
    assert os.listdir("/sys/class/net") == devices
    assert [(row.bandwidth_mbit, row.latency_ms) for row in rows[::3]] == [(None, 0.0), (50.0, 0.0), (50.0, 3.0)]
    for row, without in zip(rows, local * 3, strict=True):
        assert row.reason is None
        assert row.linked
        assert row.payload_bytes == without.payload_bytes
        assert (row.wire_bytes or 0) > (row.payload_bytes or 0)  # headers
    assert (rows[-1].small_exchange_s or 0) >= 3e-3


def network_of(_: int) -> tuple[int, str]:
    return os.getpid(), os.readlink("/proc/thread-self/ns/net")


@pytest.mark.usefixtures("_namespaces")
def test_an_interrupted_benchmark_leaves_no_process_and_no_namespace() -> None:
    seen: list[tuple[int, str]] = []

    def interrupted() -> None:
        with Workers(3) as workers:
            build(workers, 2, 0.0)
            shape(workers, 2, Link(10.0))
            seen.extend(workers.call(network_of))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    own = os.readlink("/proc/self/ns/net")
    assert len({own, *(network for _, network in seen)}) == 4
    used = {link.readlink().name for link in Path("/proc").glob("[0-9]*/ns/net") if os.access(link, os.R_OK)}
    assert own in used
    for process, network in seen:
        assert not Path(f"/proc/{process}").exists()
        assert network not in used


def test_without_the_programs_links_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm_network.shutil, "which", lambda program: None)
    [row] = measure_comm(case(), [Link(100.0)])
    assert row.reason == "the program 'ip' is not installed; it comes with iproute2"
    assert row.step_s is None
    monkeypatch.setattr(sys, "platform", "darwin")
    [row] = measure_comm(case(), [Link(100.0)])
    assert row.reason == "network namespaces are Linux's, and this is darwin"


def fail(number: int, numbers: Sequence[int], error: Exception) -> int:
    if number in numbers:
        raise error
    return number


def die(number: int) -> None:
    os._exit(3)


def test_a_process_that_fails_or_dies_is_named() -> None:
    with Workers(2) as workers:
        assert workers.call(fail, [], ValueError()) == [0, 1]
        with pytest.raises(WorkerFailed, match=r"(?s)process 1: .*ValueError: no"):
            workers.call(fail, [1], ValueError("no"))
        with pytest.raises(ConfigError, match="yes"):
            workers.call(fail, [0, 1], ConfigError("yes"))
    with Workers(2) as workers, pytest.raises(WorkerFailed, match="process 1 ended without a word"):
        workers.call(die, among=[1])


def test_only_a_link_counts_bytes() -> None:
    assert sent_bytes() is None
