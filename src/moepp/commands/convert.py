"""``moepp convert``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from ..convert import REPORT, Format, Report, appearing, convert
from ..errors import ConfigError, nearest
from ..format import binary
from ..train import checkpoint, export

FORMATS: dict[str, Format] = {"moepp": "moepp", "released": "released"}


def run_convert(source: Path, destination: Path, to: str | None) -> None:
    """Converts a model and prints what became of its tensors, or makes a model of a run's checkpoint."""
    if to is not None and to not in FORMATS:
        raise ConfigError(f"--to={to!r} does not exist; {nearest(to, FORMATS)}")
    if source.is_dir() and checkpoint.is_checkpoint(source):
        _export(source, destination, to)
        return
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Console(stderr=True)
    with Progress(*columns, console=bar, transient=True, disable=not bar.is_terminal) as progress:
        task = progress.add_task("", total=None)
        report = convert(
            source,
            destination,
            FORMATS[to] if to else None,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console = Console()
    console.print(_table(report, f"{source} → {destination}"))
    for what, names in (("carried over", report.carried), ("left behind", report.left), ("zeros", report.filled)):
        if names:
            console.print(f"{what}: {escape(', '.join(names))}", soft_wrap=True, highlight=False)
    console.print(f"every key: {destination / REPORT}", soft_wrap=True, highlight=False)


def _export(source: Path, destination: Path, to: str | None) -> None:
    if to == "released":
        raise ConfigError(f"--to=released needs a model and {source} is a checkpoint; convert it --to moepp first")
    checkpoint.verify(source)
    with appearing(destination, size := export.weight_bytes(source)) as aside:
        export.export(source, aside)
    line = f"{source} → {destination}: {binary(size)} of weights"
    Console().print(line, soft_wrap=True, markup=False, highlight=False)


def _table(report: Report, title: str) -> Table:
    table = Table(title=escape(title), title_justify="left")
    table.add_column("tensors of", style="bold")
    for name in ("published", "ours", "bytes"):
        table.add_column(name, justify="right")
    kinds = dict.fromkeys(key["kind"] for key in report.keys)
    for kind in kinds:
        table.add_row(kind, *_counts([key for key in report.keys if key["kind"] == kind]))
    table.add_section()
    table.add_row("all", *_counts(report.keys))
    return table


def _counts(keys: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    ours = {key["ours"] for key in keys} - {None}
    return str(len(keys)), str(len(ours)), binary(sum(key["bytes"] for key in keys))
