"""What happens around training steps: the log file, the progress bar, and an orderly end on a signal."""

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from . import checkpoint
from .metrics import validation_sources
from .ranks import largest

logger = logging.getLogger("moepp.train")
_ECHO = 2.0  # seconds in which a signal is taken for the first one again: launchers pass on what all have got
METRICS_FILE = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """What a run logged: an entry for each logging step and each validation, in order."""
    return [json.loads(line) for line in (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()]


class MetricsFile(TrainerCallback):
    """One JSON object a logging step, in ``metrics.jsonl``."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / METRICS_FILE

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Forgets what a killed run logged after the checkpoint that this one resumes from."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
        with checkpoint.writing(self.run, METRICS_FILE), checkpoint.moved_into(self.run) as aside:
            (aside / METRICS_FILE).write_text("".join(kept), encoding="utf-8")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        # JSON has no NaN: a number that is missing is null. A run's data is one epoch for Trainer: that says nothing.
        kept = {k: v for k, v in logs.items() if k != "epoch"}
        entry = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in kept.items()}
        with checkpoint.writing(self.run, METRICS_FILE), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **entry}) + "\n")


def tensorboard(run: Path) -> list[TrainerCallback]:
    """Transformers' own callback, writing to ``tensorboard/`` in the run; none, and a warning, where it is missing."""
    from transformers.integrations.integration_utils import TensorBoardCallback, is_tensorboard_available

    if not is_tensorboard_available():
        logger.warning("tensorboard is not installed: this run logs to the console and %s only", METRICS_FILE)
        return []
    callback = TensorBoardCallback()
    callback.logging_dir = str(run / "tensorboard")
    return [callback]


@contextmanager
def tensorboard_says_it_once() -> Iterator[None]:
    """TensorBoard's writer hands a failed write to the next call, and prints a traceback from its thread beside it."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else before(args)
    try:
        yield
    finally:
        threading.excepthook = before


class ProgressBar(TrainerCallback):
    """One bar with the time left; a line above it for each logging step, and nothing but lines off a terminal."""

    def __init__(self, console: Console, label: str) -> None:
        self.console = console
        self.label = label
        self.progress: Progress | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.progress.start()
            self.task = self.progress.add_task(self.label, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        line = training_line(logs) or validation_line(logs)
        if line:
            text = f"{self.label} {state.global_step:>5}/{state.max_steps}  {line}"
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar off the screen; also after a failure."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def training_line(logs: dict[str, Any]) -> str | None:
    """A training step's metrics for people; None if these are others."""
    if "lm_loss" not in logs:
        return None
    dropped = [v for k, v in logs.items() if k.startswith("dropped/")]
    return (
        f"lm {logs['lm_loss']:.4f}  balance {logs['balance_loss']:.4f}  FFN/token {logs['ffn_per_token']:.2f}  "
        f"load max/mean {logs['load_imbalance']:.2f}  dropped {max(dropped, default=0):.0%}  "
        f"|g| {logs['grad_norm']:.2f}  lr {logs['learning_rate']:.1e}  {logs['tokens_per_second']:,.0f} tokens/s"
    )


def validation_line(logs: dict[str, Any]) -> str | None:
    """A validation's metrics for people; None if these are others."""
    if "eval_loss" not in logs:
        return None
    each = "  ".join(f"{s} {logs[f'eval_{s}_bits_per_byte']:.3f}" for s in validation_sources(logs))
    return f"validation loss {logs['eval_loss']:.4f}, bits per byte {logs['eval_bits_per_byte']:.3f}  ({each})"


class StepClock(TrainerCallback):
    """Seconds spent in training steps, from fetching samples to the optimizer's part; not in evaluation, not in saving.

    Trainer fetches a step's samples before it calls any callback, so it is told when to start.
    """

    def __init__(self) -> None:
        self._start = self._seconds = 0.0

    def start(self) -> None:
        """A step begins."""
        self._start = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._seconds += time.perf_counter() - self._start

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class ValidateLastStep(TrainerCallback):
    """Validates the weights that the run ends with, whatever ``eval_steps`` says."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


class Interrupts(TrainerCallback):
    """Turns the first Ctrl-C or SIGTERM into a save after the running step; the second one ends the process.

    A signal reaches the ranks of a job between different steps: they stop after the first step that all of them know.

    Args:
        stop: asked after each step; True is taken for a SIGTERM.
    """

    def __init__(self, stop: Callable[[], bool] = lambda: False) -> None:
        self.stop = stop
        self.received: int | None = None
        self._at = 0.0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles both signals while the block runs."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = number, now
        elif now - self._at > _ECHO:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.received is None and self.stop():
            self.received = signal.SIGTERM
        self.received = largest(self.received or 0) or None
        if self.received is not None:
            control.should_save = control.should_training_stop = True
