"""Saves while training goes on: a checkpoint is copied to memory in one pause, then written behind the loop's back.

Every process copies its own shards, and its thread writes them. What the threads have to tell each other goes over a
group of their own, so it cannot mix with what training sends. They end together: the checkpoint is whole and in its
place on all of them, or there is none, and the reason is raised on all of them at the end of the same step.
"""

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint._state_dict_stager import StateDictStager

from . import checkpoint, dcp
from .group import Group, RanksFailed

RNG_FILE = "rng.pt"
SCHEDULE_FILE = "schedule.json"


@dataclass(frozen=True)
class Snapshot:
    """A moment of a run, on one of its processes."""

    step: int
    tensors: dict[str, Any]
    """:func:`moepp.train.dcp.state_of` the model and the optimizer."""
    rng: dict[str, Any]
    position: dict[str, Any] | None
    """In the data; None where the step's number says it."""
    write: Callable[[Path], None]
    """Writes rank 0's small files into a folder; runs in the background."""


class Saver:
    """Writes a run's checkpoints.

    Args:
        identity: what a resuming run must have in common with this one.
        keep: the newest so many stay; None and 0 keep all.
        merge: makes one position in the data of the processes' own.
        on_gpu: whether that is where the tensors are.
        patient: what to wait in for the disk.
    """

    def __init__(
        self,
        run: Path,
        identity: Mapping[str, Any],
        keep: int | None,
        merge: Callable[[list[dict[str, Any]]], dict[str, Any]],
        *,
        on_gpu: bool = False,
        patient: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.run, self.identity, self.keep, self.merge = run, identity, keep, merge
        self.threads, self.loop = Group.new(), Group.new()
        self.patient = patient
        # Not DefaultStager, which torch 2.11 closes after its first use.
        self._stager = StateDictStager(pin_memory=on_gpu, share_memory=False)
        self._on_gpu = on_gpu
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, take: Callable[[], Snapshot]) -> float:
        """Begins to save; returns once training may change the tensors again.

        Args:
            take: what to save, called when the last one is written: the two would share their copies' memory.

        Returns:
            the seconds that this took, waiting for the last save included.

        Raises:
            DataError: the last one could not be written.
        """
        start = time.perf_counter()
        self.wait()
        snapshot = take()
        staged: Any = self._stager.stage(snapshot.tensors, non_blocking=self._on_gpu)
        if self._on_gpu:
            torch.accelerator.synchronize()
        self._pending = self._executor.submit(self._write, snapshot, staged)
        return time.perf_counter() - start

    def check(self) -> None:
        """At the end of a step: raises what went wrong with a save that ended since, on all ranks in the same step."""
        if self._pending is not None and self.loop.all(self._pending.done()):
            self.wait()

    def wait(self) -> None:
        """Returns when what was begun is on the disk.

        Raises:
            DataError: it could not be written; names the ranks and the reasons, and from where the run can go on.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with self.patient():
                pending.result()

    def _write(self, snapshot: Snapshot, staged: dict[str, Any]) -> None:
        name = f"checkpoint-{snapshot.step}"
        try:
            self._write_together(checkpoint.staging(self.run) / name, snapshot, staged)
        except RanksFailed as error:
            if self.threads.rank == 0:
                checkpoint.clear_staging(self.run)
            self.threads.gather(None)
            raise checkpoint.not_written(name, self.run, str(error)) from error

    def _write_together(self, folder: Path, snapshot: Snapshot, staged: dict[str, Any]) -> None:
        ranks = self.threads
        ranks.first(lambda: folder.mkdir(parents=True))
        ranks.together(lambda: dcp.write(staged, folder, ranks))
        rngs, positions = zip(*ranks.gather((snapshot.rng, snapshot.position)), strict=True)

        def small_files() -> None:
            torch.save(list(rngs), folder / RNG_FILE)
            if snapshot.position is not None:
                (folder / checkpoint.STREAM_FILE).write_text(json.dumps(self.merge(list(positions))), encoding="utf-8")
            snapshot.write(folder)

        ranks.first(small_files)
        digests = ranks.together(lambda: checkpoint.seal(folder, self._own(folder)))

        def publish() -> None:
            checkpoint.publish(folder, self.run, self.identity, {k: v for share in digests for k, v in share.items()})
            checkpoint.rotate(self.run, self.keep)

        ranks.first(publish)

    def _own(self, folder: Path) -> list[Path]:
        """The files that this rank reads again to seal them: those it wrote."""
        if self.threads.rank:
            return dcp.files_of(folder, self.threads.rank)
        others = {path for rank in range(1, self.threads.size) for path in dcp.files_of(folder, rank)}
        return sorted(p for p in folder.rglob("*") if p.is_file() and p not in others)
