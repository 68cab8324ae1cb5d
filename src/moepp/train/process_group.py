"""The job that a launcher started: what must hold before its ranks can train together, and its process group.

torchrun tells each process its place in the environment. The ranks meet in the job's store first, where one that is
missing can be named and errors are shared, and only then in collectives.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from ..errors import BackendUnavailable, ConfigError, MoEPPError, first_line
from .ranks import Job, agreed, exchange, job, joined, same_code_everywhere

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_MARGIN = timedelta(seconds=60)


@dataclass(frozen=True)
class Launch:
    """A process's place in the job that its launcher started."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    restarts: int
    """How often torchrun has started the job again."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Launch | None":
        """What torchrun, or a launcher that sets the same variables, says; None for a process started by itself.

        Raises:
            ConfigError: a variable is missing or makes no sense.
        """
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return None
        rank, world_size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        if not 0 <= rank < world_size:
            raise ConfigError(f"RANK={rank} is not below WORLD_SIZE={world_size}; start with torchrun, which sets both")
        local = _number(environment, "LOCAL_RANK")
        local_world_size = int(environment.get("LOCAL_WORLD_SIZE", local + 1))
        return cls(rank, world_size, local, local_world_size, int(environment.get("TORCHELASTIC_RESTART_COUNT", 0)))


def check_devices(launch: Launch | None, gpus: int) -> None:
    """Checks that each process has a GPU of its own, on a machine where so many are visible.

    Raises:
        ConfigError: names the numbers and the remedy.
    """
    if launch is None and gpus > 1:
        raise ConfigError(
            f"{gpus} GPUs are visible to one process, which trains on one; use all with "
            f"torchrun --nproc-per-node {gpus} -m moepp train …, or one with CUDA_VISIBLE_DEVICES=0"
        )
    if launch is not None and 0 < gpus < launch.local_world_size:
        raise ConfigError(
            f"{launch.local_world_size} processes share the {gpus} GPUs of this machine, and each needs its own; "
            f"start it with torchrun --nproc-per-node {gpus}"
        )


def backend_of(device_type: str) -> str:
    """The process group's backends for tensors on the device, and for what ranks say beside them.

    Raises:
        BackendUnavailable: this PyTorch was built without one of them.
    """
    available = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available}
    for backend in ("gloo", "nccl") if device_type == "cuda" else ("gloo",):
        if not available[backend]():
            raise BackendUnavailable(
                f"this PyTorch ({torch.__version__}) was built without {backend}, which several processes on "
                f"{device_type} need; install a build that has it, or train on one process"
            )
    return "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"


@contextmanager
def process_group(launch: Launch | None, timeout_seconds: float, device_type: str) -> Iterator[None]:
    """The default process group while the block runs; nothing for a process by itself.

    Every rank leaves with the same error if one cannot take part. A collective waits for more than twice
    ``timeout_seconds``, so that the watchdog, which knows more, ends a job that hangs before its collectives do.

    Args:
        timeout_seconds: for the ranks to arrive, and for a rank to do what others wait for.
        device_type: of the tensors that ranks exchange: ``cpu`` or ``cuda``.

    Raises:
        MoEPPError: a rank is missing, runs other code, or has no backend; or the ranks cannot connect.
    """
    if launch is None or job() is not None:  # which a caller has joined
        yield
        return
    if launch.world_size == 1:  # one process of torchrun's is one process: others must not make a job of it
        with _without(_LAUNCHERS):
            yield
        return
    if not dist.is_available():
        raise BackendUnavailable(
            f"this PyTorch ({torch.__version__}) was built without torch.distributed, which several processes need; "
            "install a build that has it, or train on one process"
        )
    here = _join(launch, timedelta(seconds=timeout_seconds), os.environ)
    with joined(here):
        exchange(here, "arrived", "")
        if here.world_size > 1:
            backend = agreed("found their backends", lambda: backend_of(device_type))
            same_code_everywhere()
            if device_type == "cuda":
                torch.cuda.set_device(launch.local_rank)
            agreed("connected", lambda: _connect(here, backend))
        yield
        exchange(here, "finished", "")  # a rank that leaves closes connections that others may still be reading from
    if here.world_size > 1:
        dist.destroy_process_group()  # not after an error: peers that are gone would be waited for


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Hides variables of the environment while the block runs."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _join(launch: Launch, timeout: timedelta, environment: Mapping[str, str]) -> Job:
    """Meets the other ranks in the job's store."""
    host, port = environment.get("MASTER_ADDR"), _number(environment, "MASTER_PORT")
    if not host:
        raise ConfigError("MASTER_ADDR is not set; start with torchrun, which sets it")
    hosts_store = launch.rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store: Store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            *(host, port, launch.world_size, hosts_store, timeout), wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:
        raise MoEPPError(
            f"the job's store at {host}:{port} does not answer within {timeout.total_seconds():g} s: "
            f"{first_line(error)}; see that rank 0 runs there and can be reached"
        ) from error
    # torchrun keeps one store through all restarts: what an earlier attempt wrote must not be taken for this one's.
    attempt = dist.PrefixStore(f"moepp/{launch.restarts}", store)  # pyright: ignore[reportPrivateImportUsage]
    return Job(attempt, launch.rank, launch.world_size, timeout, attempts=store, restarts=launch.restarts)


def _connect(here: Job, backend: str) -> None:
    try:
        dist.init_process_group(
            backend, store=here.store, rank=here.rank, world_size=here.world_size, timeout=2 * here.timeout + _MARGIN
        )
    except RuntimeError as error:
        raise MoEPPError(
            f"{backend} cannot connect the processes: {first_line(error)}; see that the machines reach each other "
            "(GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network)"
        ) from error
    here.store.set_timeout(here.timeout)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None or not value.isdecimal():
        raise ConfigError(
            f"{name}={value or ''} in the environment is not a number; start with torchrun, which sets it"
        )
    return int(value)
