"""``moepp train``."""

import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from ..errors import ConfigError
from ..train import Recipe, TrainResult, load_recipe, train
from ..train.layout import DistributedSpec
from ..train.process_group import Launch, check_devices, process_group
from ..train.ranks import agreed, flattened, rank, same_everywhere


def run_train(recipe: Path, overrides: Sequence[str], resume: bool | Path) -> None:
    """Trains, in one process or in one of several; after an interruption prints the command that goes on and exits
    with the signal's code."""
    launch = Launch.of(os.environ)
    read: Recipe | ConfigError  # the ranks meet before they say what is wrong with it, so that one of them says it
    try:
        read = load_recipe(recipe, overrides)
    except ConfigError as error:
        read = error
    spec = read.distributed if isinstance(read, Recipe) else DistributedSpec()
    gpus = 0 if isinstance(read, Recipe) and read.training.get("use_cpu") else torch.cuda.device_count()
    with process_group(launch, spec.timeout_seconds, "cuda" if gpus else "cpu"):
        loaded = agreed("read the recipe", lambda: _checked(read, launch, gpus))
        same_everywhere(flattened(dataclasses.asdict(loaded)), "start all ranks with the same recipe")
        _train(loaded, recipe, overrides, resume)


def _checked(read: Recipe | ConfigError, launch: Launch | None, gpus: int) -> Recipe:
    if isinstance(read, ConfigError):
        raise read
    check_devices(launch, gpus)
    return read


def _train(loaded: Recipe, recipe: Path, overrides: Sequence[str], resume: bool | Path) -> None:
    console = Console(quiet=rank() > 0)
    result = train(loaded, resume=resume, console=console)
    exit_if_interrupted(console, result, ["moepp", "train", str(recipe), *overrides, "--resume"])
    console.print(f"saved to {loaded.output_dir}", soft_wrap=True, markup=False, highlight=False)


def exit_if_interrupted(console: Console, result: TrainResult, command: Sequence[str]) -> None:
    """Ends the process the way shells expect after a signal (128 + its number)."""
    if result.signal is not None:
        line = f"{signal.Signals(result.signal).name}: saved; to go on: {shlex.join(command)}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
        sys.exit(128 + result.signal)
