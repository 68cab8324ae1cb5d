"""The processes of a run, where they must agree while they train: on what each did, and on who failed.

What is exchanged here are a few bytes over gloo, on groups of their own: a background thread and the training loop can
each use one without waiting for the other's, or for the GPU's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from ..errors import first_line
from .ranks import job

T = TypeVar("T")


class RanksFailed(Exception):
    """What went wrong, on which ranks; the same text on all of them."""

    def __init__(self, reasons: Mapping[int, str], size: int) -> None:
        self.reasons = dict(reasons)
        told = [reason if size == 1 else f"rank {rank}: {reason}" for rank, reason in sorted(self.reasons.items())]
        super().__init__("; ".join(told))


@dataclass(frozen=True)
class Group:
    """This process among those of the run; one process alone exchanges nothing."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def new(cls, timeout: timedelta = timedelta(minutes=30)) -> "Group":
        """All processes of the job, with a group of their own: every one of them must call this, in the same order."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        if (here := job()) is not None:
            timeout = max(timeout, 3 * here.timeout)
        group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))
        return cls(dist.get_rank(), dist.get_world_size(), group)

    def gather(self, value: T) -> list[T]:
        """Everyone's value, by rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def all(self, done: bool) -> bool:
        """Whether it is so on every rank."""
        if self.size == 1:
            return done
        flag = torch.tensor(int(done))
        dist.all_reduce(flag, dist.ReduceOp.MIN, group=self.group)
        return bool(flag)

    def together(self, action: Callable[[], T]) -> list[T]:
        """Does something on every rank and returns what each got, once all are done.

        Raises:
            RanksFailed: it failed on some ranks; raised on all.
        """
        result: T | None = None
        with Held() as held:
            result = action()
        said = None if held.error is None else _reasons(held.error, self.rank)
        everyone = self.gather((said, result))
        if failed := {rank: reason for said, _ in everyone if said for rank, reason in said.items()}:
            raise RanksFailed(failed, self.size) from held.error
        return [cast(T, value) for _, value in everyone]

    def first(self, action: Callable[[], T]) -> T:
        """Does something on rank 0 while the others wait; all return what it returned, or raise what it raised."""
        return cast(T, self.together(lambda: action() if self.rank == 0 else None)[0])


class Held:
    """Keeps what the block raises: whatever happens on one rank, the others wait to hear of it."""

    error: BaseException | None = None

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = error
        return isinstance(error, Exception | CheckpointException)


def _reasons(error: BaseException, rank: int) -> dict[int, str]:
    """A failure in a few words, by the rank on which it happened."""
    if isinstance(error, CheckpointException):  # raised on all ranks for what some of them met
        return {where: first_line(met) for where, (met, _) in error.failures.items()}
    return {rank: first_line(error)}
