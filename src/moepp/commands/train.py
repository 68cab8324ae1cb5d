"""``moepp train``."""

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from torch.cuda import device_count

from ..errors import ConfigError
from ..train import Recipe, TrainResult, load_recipe, train
from ..train.layout import DistributedSpec
from ..train.process_group import Launch, process_group
from ..train.ranks import agreed, rank


def run_train(recipe: Path, overrides: Sequence[str], resume: bool | Path) -> None:
    """Trains, in one process or in one of several; after an interruption prints the command that goes on and exits
    with the signal's code."""
    read: Recipe | ConfigError  # the ranks meet before they say what is wrong with it, so that one of them says it
    try:
        read = load_recipe(recipe, overrides)
        timeout, gpus = read.distributed.timeout_seconds, 0 if read.training.get("use_cpu") else device_count()
    except ConfigError as error:
        read, timeout, gpus = error, DistributedSpec().timeout_seconds, 0
    with process_group(Launch.of(os.environ), timeout, "cuda" if gpus else "cpu"):
        loaded = agreed("read the recipe", lambda: _or_raise(read))
        console = Console(quiet=rank() > 0)
        result = train(loaded, resume=resume, console=console)
    exit_if_interrupted(console, result, ["moepp", "train", str(recipe), *overrides, "--resume"])
    console.print(f"saved to {loaded.output_dir}", soft_wrap=True, markup=False, highlight=False)


def _or_raise(read: Recipe | ConfigError) -> Recipe:
    if isinstance(read, ConfigError):
        raise read
    return read


def exit_if_interrupted(console: Console, result: TrainResult, command: Sequence[str]) -> None:
    """Ends the process the way shells expect after a signal (128 + its number)."""
    if result.signal is not None:
        line = f"{signal.Signals(result.signal).name}: saved; to go on: {shlex.join(command)}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
        sys.exit(128 + result.signal)
