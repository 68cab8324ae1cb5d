"""The command line: ``python -m experiments NAME``, and ``python -m experiments.NAME``, which is the same.

``python -m experiments pool`` trains what all experiments need; ``report`` writes docs/reproduction.md.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from transformers.utils import logging as transformers_logging

from moepp.errors import ConfigError, MoEPPError

from .catalogue import NAMES, experiment
from .experiment import Experiment
from .lab import Lab
from .pool import FOLDER, Pool
from .result import Result
from .runs import Run
from .scales import Scale, check_device
from .scales import scale as scale_of
from .show import show

ALL = "all"
POOL = "pool"
REPORT = "report"
UNFINISHED = 3
"""Exit code when the time was up before everything was trained."""


_MARGIN = 20.0
"""Seconds of ``--minutes`` left for the step that runs, for saving and for leaving; at most a tenth of them."""


@dataclass(frozen=True)
class _Options:
    scale: Scale
    pool: Path
    jobs: int
    deadline: float | None
    """``time.monotonic()`` at which the command's time is up."""
    checkpoints: tuple[Path, ...]
    device: str
    out: Path | None
    again: bool


def main(name: str) -> None:
    """Runs one experiment from the command line; what a file ends with."""
    run([name, *sys.argv[1:]])


def _command(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help=f"{', '.join(NAMES)}, all, pool or report.")],
    scale: Annotated[str, typer.Option(help="tiny, small or gpu.")] = "tiny",
    pool: Annotated[Path, typer.Option(help="Where trained models are kept.")] = FOLDER,
    jobs: Annotated[int, typer.Option(help="Processes that train at a time, sharing the CPU's cores.")] = 1,
    minutes: Annotated[float | None, typer.Option(help="Stop in time for this, to go on another time.")] = None,
    checkpoint: Annotated[list[Path] | None, typer.Option(help="A model's folder, for table4.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu or cuda, for what is measured on trained models.", show_default="the scale's"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go.", show_default="beside the experiments")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure also what has not changed since.")] = False,
) -> None:
    """The paper's tables and figures, and the questions it left open."""
    if jobs < 1:
        raise ConfigError(f"--jobs={jobs} must be at least 1")
    if minutes is not None and minutes <= 0:
        raise ConfigError(f"--minutes={minutes:g} must be positive")
    if names == [REPORT]:
        from .reproduction import write_page

        write_page()
        return
    at = scale_of(scale)
    # What a GPU's recipe trains would take weeks on a CPU.
    for needed in {at.device, device or at.device}:
        check_device(needed)
    deadline = None
    if minutes is not None:
        deadline = time.monotonic() + 60 * minutes - min(_MARGIN, 6 * minutes)
    options = _Options(at, pool, jobs, deadline, tuple(checkpoint or ()), device or at.device, out, again)
    only_pool = names[0] == POOL
    wanted = list(NAMES) if names in ([ALL], [POOL]) else names[1:] if only_pool else names
    _experiments([experiment(name) for name in wanted], options, measure=not only_pool)


def _experiments(chosen: Sequence[Experiment], options: _Options, *, measure: bool) -> None:
    console = Console()
    transformers_logging.disable_progress_bar()
    pool = Pool(options.pool, options.deadline, console)
    runs = list(dict.fromkeys(run for one in chosen for run in one.runs(options.scale)))
    if not _filled(pool, runs, [one.name for one in chosen], options):
        console.print(
            f"{sum(map(pool.done, runs))} of {len(runs)} runs are there; the same command goes on with the rest"
        )
        raise typer.Exit(UNFINISHED)
    if not measure:
        console.print(f"{len(runs)} runs are in {pool.folder / options.scale.name}")
        return
    lab = Lab(options.scale, pool, options.checkpoints, options.device)
    failures = 0
    for index, one in enumerate(chosen):
        if pool.late():
            console.print(f"{index} of {len(chosen)} experiments are measured; the same command goes on with the rest")
            raise typer.Exit(UNFINISHED)
        try:
            _measure(one, lab, options, console)
        except MoEPPError as error:
            _complain(f"{one.name}: {error}")
            failures += 1
    if failures:
        raise typer.Exit(2)


def _measure(one: Experiment, lab: Lab, options: _Options, console: Console) -> None:
    folder = options.out or options.scale.results
    path = folder / f"{one.name}.json"
    if not options.again and path.is_file() and Result.read(path).fingerprint == one.fingerprint(lab):
        show(Result.read(path), console)
        console.print(f"{path} is as it would be measured again; --again does so", highlight=False, soft_wrap=True)
        return
    with console.status(f"measuring {one.name}"):
        one.measure(lab).write(folder)
    result = Result.read(path)  # what is drawn now is what can be drawn from the file
    show(result, console)
    if one.draw is not None and result.data:
        from .plots import save

        save(result, one.draw, folder / f"{one.name}.svg")
    console.print(f"written to {path}", highlight=False, soft_wrap=True)


def _filled(pool: Pool, runs: Sequence[Run], names: Sequence[str], options: _Options) -> bool:
    if options.jobs == 1 or all(map(pool.done, runs)):
        return pool.fill(runs)
    command = [sys.executable, "-m", "experiments", POOL, *names]
    command += ["--scale", options.scale.name, "--pool", str(pool.folder)]
    if options.deadline is not None:
        command += ["--minutes", str(max(1e-3, (options.deadline - time.monotonic()) / 60))]
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    # Several bars cannot share a terminal.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TTY_COMPATIBLE": "0"}
    codes = wait([subprocess.Popen(command, env=environment) for _ in range(options.jobs)]) - {0, UNFINISHED}
    if codes:
        raise typer.Exit(max(codes))
    return all(map(pool.done, runs))


def wait(children: Sequence[subprocess.Popen[bytes]]) -> set[int]:
    """The children's exit codes, once all have left; Ctrl-C and SIGTERM are passed on to them, who save first."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        codes = {child.wait() for child in children}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return {128 - code if code < 0 else code for code in codes}  # as a shell counts those that a signal ended


def run(arguments: list[str]) -> None:
    """Parses and obeys; a mistake of the user is one line and exit code 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(_command)
    try:
        app(args=arguments, prog_name="python -m experiments")
    except MoEPPError as error:
        _complain(str(error))
        sys.exit(2)


def _complain(message: str) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
