"""Ends a job in which a rank hangs or dies, and says which one.

A rank that hangs leaves all others waiting in their next collective, and what a collective says when its time is up is
who waited, not for whom. So each rank keeps in mind what it is doing, and a thread of it tells the job's store. When a
rank has not moved for ``distributed.timeout_seconds``, the ranks compare what the store says: one of them prints who is
behind, or does not answer at all, and every rank ends. Each leaves its Python stacks in a file.
"""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import MoEPPError, first_line
from .checkpoint import way_on
from .hang import Beat, innermost, who_hangs
from .ranks import Job, named

STACKS = "stacks"
_BEATS_MISSED = 3  # after which a rank counts as not answering
_LINGER = 0.5  # seconds in which the others see that they can go
_GRACE = 10.0  # seconds for what is said at the end; a store or disk that hangs, too, must not hold it up


class Watchdog(TrainerCallback):
    """Follows a training run; where there is no job, to no purpose.

    Args:
        run: its folder.
        job: the ranks to watch.
    """

    def __init__(self, run: Path, job: Job | None) -> None:
        self.run = run
        self.job = job if job and job.world_size > 1 else None
        self.timeout = job.timeout.total_seconds() if job else 0.0
        self.period = min(1.0, self.timeout / 10)
        self._doing = ("setting up", 0)
        self._moves = 0
        self._idle = 0.0
        self._patient = False
        self._called = False  # another rank found that the job hangs
        self._done = threading.Event()

    # What this rank is doing

    def enter(self, phase: str, step: int) -> None:
        """This rank begins something."""
        self._doing = (phase, step)
        self._moves += 1

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Counts no time while the block runs: it waits for storage, which may be slow and still be at work."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def tick(self) -> None:
        """This rank is still at it, and moves."""
        self._moves += 1

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.enter("fetching samples", state.global_step + 1)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.enter("forward/backward", state.global_step + 1)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.tick()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.enter("optimizer", state.global_step + 1)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.enter("validating", state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = {"logging": control.should_log, "validating": control.should_evaluate, "saving": control.should_save}
        for phase, is_due in due.items():
            if is_due:
                return self.enter(phase, state.global_step)
        return self.enter("fetching samples", state.global_step + 1)

    # Trainer clears what was due before it calls these.
    on_log = on_evaluate = on_save = on_step_end

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.enter("finishing", state.global_step)

    # What becomes of it

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches while the block runs.

        Raises:
            MoEPPError: another rank has ended. Of several ranks that raise the same error, one prints it.
        """
        if self.job is None:
            yield
            return
        store = self.job.store.clone()  # of its own: the main thread's can be waiting for an answer  # pyright: ignore[reportAttributeAccessIssue]
        threads = [threading.Thread(target=self._beat, daemon=True), threading.Thread(target=self._watch, daemon=True)]
        for thread in threads:
            thread.start()
        try:
            yield
        except (MoEPPError, RuntimeError) as error:
            if _of_a_lost_peer(error):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, who ends all when one has; we only say why
                raise self._lost(store, error) from error
            self._ends_with(store, error)
            raise
        finally:
            self._done.set()
            for thread in threads:
                thread.join()

    def _ends_with(self, store: Any, error: Exception) -> None:
        """Tells the others, and lets the first of the ranks that end with the same error print it."""
        assert self.job is not None
        rank = self.job.rank
        store.set(f"watchdog/failed/{rank}", "")
        if isinstance(error, MoEPPError) and error.said_by is None:
            key = f"watchdog/said/{sha256(str(error).encode()).hexdigest()}"
            error.said_by = int(store.compare_set(key, "", str(rank)))

    def _lost(self, store: Any, error: Exception) -> MoEPPError:
        """Who has ended, for the ranks that notice by a connection that closes."""
        assert self.job is not None
        beats = self._beats(store)
        failed = [rank for rank in beats if store.check([f"watchdog/failed/{rank}"])]
        silent = [rank for rank, beat in beats.items() if beat is None and rank not in failed]
        gone = failed or silent
        what = f"{named(gone)} ended" if gone else f"the connection to another rank was lost ({first_line(error)})"
        lost = MoEPPError(f"{what} at step {self._doing[1]}, so that all ranks end; {way_on(self.run)}")
        # A rank that failed has said why; else one says what it saw for all.
        lost.said_by = failed[0] if failed else int(store.compare_set("watchdog/said/lost", "", str(self.job.rank)))
        return lost

    def _beat(self) -> None:
        """Tells the store where this rank is."""
        assert self.job is not None
        store, number = self.job.store.clone(), 0  # pyright: ignore[reportAttributeAccessIssue]
        try:
            while not self._done.wait(self.period):
                phase, step = self._doing
                beat = Beat(number, phase, step, self._idle, *innermost(threading.main_thread()))
                store.set(f"watchdog/{self.job.rank}", beat.to_json())
                self._called = self._called or store.check(["watchdog/hangs"])
                number += 1
            store.set(f"watchdog/{self.job.rank}", Beat(-1, "ended", self._doing[1], 0.0, "", False).to_json())
        except RuntimeError:  # the store has ended with rank 0: collectives notice, too
            return

    def _watch(self) -> None:
        """Counts the time without a move in beats, so that a job that was suspended as a whole may go on."""
        moves = self._moves
        while not self._done.wait(self.period):
            self._idle = self._idle + self.period if moves == self._moves and not self._patient else 0.0
            moves = self._moves
            if self._idle > self.timeout or self._called:
                self._end()

    def _end(self) -> None:
        """Ends this process, whatever hangs."""
        assert self.job is not None
        _within(_GRACE / 2, self._dump)
        if not _within(_GRACE + _BEATS_MISSED * self.period, self._report):
            _say(
                f"rank {self.job.rank} has not moved for {self._idle:g} s ({self._doing[0]}, step {self._doing[1]}), "
                "and the job's store, which rank 0's machine keeps, does not answer"
            )
        os._exit(1)

    def _dump(self) -> None:
        assert self.job is not None
        folder = self.run / STACKS
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"rank-{self.job.rank}.txt").open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file)

    def _report(self) -> None:
        """Compares all ranks' beats; the lowest that answers says what came out of it."""
        assert self.job is not None
        store = self.job.store.clone()  # pyright: ignore[reportAttributeAccessIssue]
        store.set("watchdog/hangs", "")
        beats = self._beats(store)
        beats[self.job.rank] = beats[self.job.rank] or Beat(0, *self._doing, self._idle, "", True)
        if self.job.rank == min(rank for rank, beat in beats.items() if beat is not None):
            _say(f"{who_hangs(beats)}; stacks in {self.run / STACKS}; {way_on(self.run)}")
            store.set("watchdog/reported", "")
        try:
            while not store.check(["watchdog/reported"]):
                time.sleep(0.05)
            time.sleep(_LINGER if self.job.rank == 0 else 0)  # the store may end with it
        except RuntimeError:
            return

    def _beats(self, store: Any) -> dict[int, Beat | None]:
        """Every rank's last beat; None for those that have stopped beating."""
        assert self.job is not None
        keys = [f"watchdog/{rank}" for rank in range(self.job.world_size)]

        def read() -> list[Beat | None]:
            return [Beat.from_json(store.get(key)) if store.check([key]) else None for key in keys]

        before = read()
        time.sleep(_BEATS_MISSED * self.period)
        pairs = zip(before, read(), strict=True)
        return {
            rank: None if old == new and (new is None or new.number >= 0) else new
            for rank, (old, new) in enumerate(pairs)
        }


def _of_a_lost_peer(error: BaseException | None) -> bool:
    """Whether a collective failed, or what failed because of one."""
    if error is None or isinstance(error, MoEPPError):
        return error is not None and _of_a_lost_peer(error.__cause__)
    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "NCCL", "Connection closed"))


def _within(seconds: float, action: Callable[[], None]) -> bool:
    """Whether the action was done in time; if not, it goes on behind our back."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _say(message: str) -> None:
    """Past whatever stands for sys.stderr: a progress bar, or a lock that hangs."""
    os.write(2, f"error: {message}\n".encode())
