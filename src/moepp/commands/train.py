"""``moepp train``."""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..train import TrainResult, load_recipe, train
from .format import large


def run_train(recipe: Path, overrides: Sequence[str], resume: bool | Path) -> None:
    """Trains; after an interruption prints the command that goes on and exits with the signal's code."""
    console = Console()
    loaded = load_recipe(recipe, overrides)
    result = train(loaded, resume=resume, console=console)
    exit_if_interrupted(console, result, ["moepp", "train", str(recipe), *overrides, "--resume"])
    console.print(data_table(result))
    console.print(f"saved to {loaded.output_dir}", soft_wrap=True, markup=False, highlight=False)


def exit_if_interrupted(console: Console, result: TrainResult, command: Sequence[str]) -> None:
    """Ends the process the way shells expect after a signal (128 + its number)."""
    if result.signal is not None:
        line = f"{signal.Signals(result.signal).name}: saved; to go on: {shlex.join(command)}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
        sys.exit(128 + result.signal)


def data_table(result: TrainResult) -> Table:
    """What the run was trained on."""
    data = result.prepared.data
    table = Table(title=f"Data, corpus hash {data.corpus_hash[:16]}", title_justify="left")
    numbers = {"weight": "weight", "documents": "docs", "bytes": "bytes", "tokens": "tokens", "epochs": "epochs"}
    for title in ("source", "split", *numbers.values()):
        table.add_column(title, justify="right" if title in numbers.values() else "left")
    for row in data.rows:
        table.add_row(str(row["source"]), str(row["split"]), *(_number(row.get(name)) for name in numbers))
    return table


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return large(value) if isinstance(value, int) else "–"
