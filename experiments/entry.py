"""The command line: ``python -m experiments NAME``, and ``python -m experiments.NAME``, which is the same.

``python -m experiments pool`` trains what all experiments need; ``report`` writes docs/reproduction.md.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from moepp.errors import ConfigError, MoEPPError

from .catalogue import NAMES, experiment
from .lab import Lab
from .pool import FOLDER, Pool
from .runs import Run
from .scales import scale as scale_of
from .show import show

ALL = "all"
POOL = "pool"
REPORT = "report"
UNFINISHED = 3
"""Exit code when the time was up before everything was trained."""


@dataclass(frozen=True)
class _Options:
    scale: str
    pool: Path
    jobs: int
    minutes: float | None
    checkpoints: tuple[Path, ...]
    device: str
    out: Path | None


def main(name: str) -> None:
    """Runs one experiment from the command line; what a file ends with."""
    run([name, *sys.argv[1:]])


def _command(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help=f"{', '.join(NAMES)}, all, pool or report.")],
    scale: Annotated[str, typer.Option(help="tiny, small or gpu.")] = "tiny",
    pool: Annotated[Path, typer.Option(help="Where trained models are kept.")] = FOLDER,
    jobs: Annotated[int, typer.Option(help="Processes that train at a time, sharing the CPU's cores.")] = 1,
    minutes: Annotated[float | None, typer.Option(help="Stop training after this, to go on another time.")] = None,
    checkpoint: Annotated[list[Path] | None, typer.Option(help="A model's folder, for table4.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for what is measured on trained models.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Where results go.", show_default="beside the experiments")] = None,
) -> None:
    """The paper's tables and figures, and the questions it left open."""
    if jobs < 1:
        raise ConfigError(f"--jobs={jobs} must be at least 1")
    if minutes is not None and minutes <= 0:
        raise ConfigError(f"--minutes={minutes:g} must be positive")
    options = _Options(scale, pool, jobs, minutes, tuple(checkpoint or ()), device, out)
    if names == [REPORT]:
        from .reproduction import write_page

        write_page()
        return
    only_pool = names[0] == POOL
    wanted = list(NAMES) if names in ([ALL], [POOL]) else names[1:] if only_pool else names
    _experiments(wanted, options, measure=not only_pool)


def _experiments(names: Sequence[str], options: _Options, *, measure: bool) -> None:
    console = Console()
    chosen, at = [experiment(name) for name in names], scale_of(options.scale)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    pool = Pool(options.pool, deadline, console)
    runs = list(dict.fromkeys(run for one in chosen for run in one.runs(at)))
    if not _filled(pool, runs, names, options):
        console.print(
            f"{sum(map(pool.done, runs))} of {len(runs)} runs are there; the same command goes on with the rest"
        )
        raise typer.Exit(UNFINISHED)
    if not measure:
        console.print(f"{len(runs)} runs are in {pool.folder / at.name}")
        return
    lab = Lab(at, pool, options.checkpoints, options.device)
    folder = options.out or at.results
    for one in chosen:
        with console.status(f"measuring {one.name}"):
            result = one.measure(lab)
        show(result, console)
        path = result.write(folder)
        if one.draw is not None:
            from .plots import save

            save(result, one.draw, folder / f"{one.name}.svg")
        console.print(f"written to {path}", highlight=False, soft_wrap=True)


def _filled(pool: Pool, runs: Sequence[Run], names: Sequence[str], options: _Options) -> bool:
    if options.jobs == 1 or all(map(pool.done, runs)):
        return pool.fill(runs)
    command = [sys.executable, "-m", "experiments", POOL, *names, "--scale", options.scale, "--pool", str(pool.folder)]
    if options.minutes is not None:
        command += ["--minutes", str(options.minutes)]
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    children = [subprocess.Popen(command, env=environment) for _ in range(options.jobs)]
    codes = {child.wait() for child in children} - {0, UNFINISHED}
    if codes:
        raise typer.Exit(max(codes))
    return all(map(pool.done, runs))


def run(arguments: list[str]) -> None:
    """Parses and obeys; a mistake of the user is one line and exit code 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(_command)
    try:
        app(args=arguments, prog_name="python -m experiments")
    except MoEPPError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
