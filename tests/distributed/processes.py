"""Several processes of one job, started in tenths of a second: forked from a server that has the imports behind it."""

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

_PRELOAD = ["torch", "transformers", "moepp.model", "moepp.train.trainer", "tests.distributed.preload"]


class ProcessFailed(AssertionError):
    """One of the processes raised, died or hung; says which and how."""


def run_processes(
    world: int, function: Callable[..., Any], *args: Any, timeout: float = 60.0, init: bool = True, grace: float = 2.0
) -> list[Any]:
    """Runs ``function(*args)`` in so many processes, which are ranks of one gloo job, and returns what each returned.

    Args:
        function: of a module's top level; what it returns must pickle.
        timeout: seconds until those that still run are killed and named.
        grace: seconds that the others have when one has failed.
        init: whether the default process group is there before the function runs; else only torchrun's environment.

    Raises:
        ProcessFailed: with each failed rank's traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            receive, send = context.Pipe()
            arguments = (rank, world, f"{folder}/store", send, function, args, init)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            send.close()
            pipes.append(receive)
            processes.append(process)
        results: dict[int, tuple[bool, Any]] = {}
        end = time.monotonic() + timeout
        while len(results) < world and (left := end - time.monotonic()) > 0:
            for pipe in wait([p for r, p in enumerate(pipes) if r not in results], timeout=left):
                rank = pipes.index(pipe)  # pyright: ignore[reportArgumentType]
                try:
                    results[rank] = pickle.loads(pipes[rank].recv_bytes())
                except EOFError:
                    results[rank] = (False, "died without a word")
            if any(not ok for ok, _ in results.values()):
                end = min(end, time.monotonic() + grace)  # the others may be about to say why, or wait for it for ever
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(timeout=10.0 if len(results) == world else 0.0)
            process.kill()
    failed = [f"rank {rank}: {said}" for rank, (ok, said) in sorted(results.items()) if not ok]
    failed += [f"rank {rank}: still running" for rank in range(world) if rank not in results]
    if failed:
        raise ProcessFailed("\n".join(failed))
    return [results[rank][1] for rank in range(world)]


def _work(
    rank: int, world: int, store: str, send: Connection, function: Callable[..., Any], args: tuple[Any, ...], init: bool
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ["OMP_NUM_THREADS"] = "1"  # as torchrun does; else accelerate does, and says so
    with _Reporting(send):
        if init:
            method = f"file://{store}"
            dist.init_process_group("gloo", method, rank=rank, world_size=world, timeout=timedelta(seconds=60))
        _send(send, True, function(*args))
    with suppress(EOFError):  # which says that all are done: whoever leaves earlier may break the others' connections
        send.recv()


def _send(pipe: Connection, ok: bool, said: Any) -> None:
    """By value: multiprocessing would leave a tensor's memory with this process, which ends."""
    pipe.send_bytes(pickle.dumps((ok, said)))


class _Reporting:
    """Sends the traceback of whatever the block raises."""

    def __init__(self, send: Connection) -> None:
        self.send = send

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.send.send((False, "".join(traceback.format_exception(kind, error, trace))))
