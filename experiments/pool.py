"""One pool of trained models for all experiments: what is there is not trained again.

A run's folder is named by its key. It is finished once its record is there; a run that was stopped goes on from its
newest checkpoint. A lock keeps two processes off the same run, so any number of them may fill one pool.
"""

import fcntl
import json
import shutil
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
_LOOK = 0.2
"""Seconds between looks at what another process trains."""
_PREPARED = 4
"""Sets of samples that are kept for the next variants: more than a variant has seeds."""


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
        """Trains what is missing, in order, and waits for what another process trains; False if time was up before."""
        for run in filter(self.done, runs):
            self._tidy(run)  # somebody was killed in between
        missing = [run for run in runs if not self.done(run)]
        while missing and not self.late():
            for run in missing:
                with self._locked(run) as mine:
                    if mine and not self.done(run) and not self.late():
                        self._train(run)
                        self._say(run, runs)
            missing = [run for run in missing if not self.done(run)]
            if missing and not self.late():
                time.sleep(_LOOK)
        return not missing

    def late(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _say(self, run: Run, runs: Sequence[Run]) -> None:
        if not self.done(run):
            return
        done = [self.record(other) for other in runs if self.done(other)]
        pace = sum(one.seconds for one in done) / max(1, sum(one.tokens for one in done))
        left = pace * sum(other.tokens for other in runs if not self.done(other))
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
        recipe = replace(run.recipe(), output_dir=str(folder))
        prepared = self._prepare(run)
        if self.late():
            return
        console = self.console if self.console.is_terminal else Console(quiet=True)
        try:
            result = train(recipe, prepared=prepared, console=console, resume=resume, label=str(run), stop=self.late)
        except TrainingDiverged as error:
            failed(run, key, corpus_hash(run.scale), str(error)).write(folder)
        else:
            if result.signal is not None:
                if not self.late():
                    raise KeyboardInterrupt
                return
            record(run, key, result, folder).write(folder)
        self._tidy(run)

    def _tidy(self, run: Run) -> None:
        """A run that is done needs no checkpoints."""
        for checkpoint in checkpoints(self.path(run)):
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _prepare(self, run: Run) -> Prepared:
        """The run's data; variants of one seed share it."""
        recipe = run.recipe()
        same = [recipe.seed, recipe.training["max_steps"], recipe.samples_per_step, repr(recipe.data)]
        same += [repr(recipe.tokenizer), run.scale.name]
        name = json.dumps(same)
        found = self._prepared.pop(name, None) or prepare(recipe, Console(quiet=True))
        self._prepared[name] = found  # the newest is the last
        if len(self._prepared) > _PREPARED:
            del self._prepared[next(iter(self._prepared))]
        return found

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
