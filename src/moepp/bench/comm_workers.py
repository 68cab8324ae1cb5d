"""Processes that run functions side by side, for as long as a benchmark needs them."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import MoEPPError

_PRELOAD = ["moepp.preload", "moepp.bench.comm"]


class WorkerFailed(RuntimeError):
    """A function raised in one of the processes, or the process ended; says which and how."""


class Workers:
    """So many processes, forked from one that has the imports behind it; used as a context, which ends them.

    They end with this process, too; if it is killed, after the function that they are at.
    """

    def __init__(self, count: int) -> None:
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(number, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def call(self, function: Callable[..., Any], *args: Any, among: Sequence[int] | None = None) -> list[Any]:
        """Runs ``function(number, *args)`` in all processes, or in those with these numbers, at the same time.

        Args:
            function: of a module's top level; what it takes and returns must pickle.

        Returns:
            What each returned, in order.

        Raises:
            MoEPPError: one raised it.
            WorkerFailed: one raised something else, or died.
        """
        numbers = list(range(len(self._pipes)) if among is None else among)
        for number in numbers:
            self._pipes[number].send((function, args))
        results: dict[int, Any] = {}
        while len(results) < len(numbers):
            for pipe in wait([self._pipes[number] for number in numbers if number not in results]):
                number = self._pipes.index(pipe)  # pyright: ignore[reportArgumentType]
                try:
                    result, error = self._pipes[number].recv()
                except EOFError:
                    raise WorkerFailed(f"process {number} ended without a word") from None
                if isinstance(error, MoEPPError):
                    raise error
                if error is not None:
                    raise WorkerFailed(f"process {number}: {error}")
                results[number] = result
        return [results[number] for number in numbers]


def _serve(number: int, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:  # the parent is gone
            return
        try:
            pipe.send((function(number, *args), None))
        except MoEPPError as error:
            pipe.send((None, error))
        except Exception:  # noqa: BLE001 - the parent raises it
            pipe.send((None, traceback.format_exc()))
