"""One pool of trained models for all experiments: what is there is not trained again.

A run's folder is named by its key. It is finished once its record is there; a run that was stopped goes on from its
newest checkpoint. A lock keeps two processes off the same run, so any number of them may fill one pool.
"""

import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from moepp.train import Prepared, checkpoints, prepare, train
from moepp.train.diverged import TrainingDiverged

from .record import RECORD_FILE, Record, failed, record
from .runs import Run, corpus_hash

FOLDER = Path("runs/experiments")


@dataclass
class Pool:
    """Trained models on disk.

    Args:
        folder: holds a folder a run.
        deadline: ``time.monotonic()`` at which training stops, to go on another time.
    """

    folder: Path = FOLDER
    deadline: float | None = None
    console: Console = field(default_factory=Console)
    _prepared: dict[str, Prepared] = field(default_factory=dict)

    def path(self, run: Run) -> Path:
        """Where a run's model is or will be."""
        return self.folder / run.scale.name / run.key()

    def done(self, run: Run) -> bool:
        return (self.path(run) / RECORD_FILE).is_file()

    def record(self, run: Run) -> Record:
        return Record.read(self.path(run))

    def fill(self, runs: Sequence[Run]) -> bool:
        """Trains what is missing and nobody else is training, in order; True when all is there."""
        for run in runs:
            if self._late():
                break
            with self._locked(run) as mine:
                if mine and not self.done(run):
                    self._train(run)
                    self._say(run, runs)
        return all(self.done(run) for run in runs)

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _say(self, run: Run, runs: Sequence[Run]) -> None:
        if not self.done(run):
            return
        done = [self.record(other) for other in runs if self.done(other)]
        pace = sum(one.seconds for one in done) / max(1e-9, sum(one.length for one in done))
        left = pace * sum(other.variant.length for other in runs if not self.done(other))
        found = self.record(run)
        outcome = f"diverged: {found.failure}" if found.failure else f"validation loss {found.loss:.4f}"
        self.console.print(
            f"{len(done)}/{len(runs)}  {run}: {outcome}, {found.seconds:.0f} s; "
            f"left for one process: {left / 60:.0f} min",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _train(self, run: Run) -> None:
        folder, key = self.path(run), run.key()
        resume = bool(checkpoints(folder))
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        recipe = replace(run.recipe(), output_dir=str(folder))
        prepared = self._prepare(run)
        try:
            with _stopped_at(self.deadline):
                result = train(recipe, prepared=prepared, console=Console(quiet=True), resume=resume)
        except TrainingDiverged as error:
            failed(run, key, corpus_hash(run.scale), str(error)).write(folder)
            return
        if result.signal is not None:
            if not self._late():
                raise KeyboardInterrupt
            return
        record(run, key, result, folder, time.monotonic() - began).write(folder)
        for checkpoint in checkpoints(folder):
            shutil.rmtree(checkpoint)

    def _prepare(self, run: Run) -> Prepared:
        """The run's data; variants of one seed share it."""
        recipe = run.recipe()
        same = [recipe.seed, recipe.training["max_steps"], recipe.samples_per_step, repr(recipe.data)]
        same += [repr(recipe.tokenizer), run.scale.name]
        name = json.dumps(same)
        if name not in self._prepared:
            self._prepared[name] = prepare(recipe, Console(quiet=True))
        return self._prepared[name]

    @contextmanager
    def _locked(self, run: Run) -> Iterator[bool]:
        """Whether this process may train the run, for as long as the block lasts."""
        place = self.path(run).parent
        place.mkdir(parents=True, exist_ok=True)
        with (place / f"{run.key()}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


@contextmanager
def _stopped_at(deadline: float | None) -> Iterator[None]:
    """Ends a training run that is still going on then, as a signal from outside would: it saves and stops."""
    if deadline is None:
        yield
        return
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
