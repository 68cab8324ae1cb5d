"""``moepp train``."""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..train import TrainResult, load_recipe, train


def run_train(recipe: Path, overrides: Sequence[str], resume: bool | Path) -> None:
    """Trains; after an interruption prints the command that goes on and exits with the signal's code."""
    console = Console()
    loaded = load_recipe(recipe, overrides)
    result = train(loaded, resume=resume, console=console)
    exit_if_interrupted(console, result, ["moepp", "train", str(recipe), *overrides, "--resume"])
    console.print(f"saved to {loaded.output_dir}", soft_wrap=True, markup=False, highlight=False)


def exit_if_interrupted(console: Console, result: TrainResult, command: Sequence[str]) -> None:
    """Ends the process the way shells expect after a signal (128 + its number)."""
    if result.signal is not None:
        line = f"{signal.Signals(result.signal).name}: saved; to go on: {shlex.join(command)}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
        sys.exit(128 + result.signal)
