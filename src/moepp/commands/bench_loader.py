"""``moepp bench loader``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..bench import Results, Row, command, measure_loader
from ..errors import ConfigError
from ..format import duration
from ..model import account
from ..train import Recipe, load_recipe, prepare
from .options import require_at_least_one, require_writable


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, as typed: lists are separated by commas."""

    recipe: Path
    overrides: Sequence[str] = ()
    ranks: str = "1"
    seconds: float = 10.0
    training_rate: float | None = None
    peak: float = 312.0
    utilization: float = 0.5
    json: Path | None = None


def run_bench_loader(options: Options) -> None:
    """Prepares the recipe's data, measures its loader and prints it beside what training takes.

    Raises:
        ConfigError, DataError: an option, the recipe or its data cannot be used.
    """
    require_at_least_one(options, "seconds")
    for name in ("training_rate", "peak", "utilization"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')}={value} must be more than 0")
    ranks = [_number(text) for text in options.ranks.split(",")]
    if options.json is not None:
        require_writable("--json", options.json)
    recipe, console = load_recipe(options.recipe, options.overrides), Console()
    data = prepare(recipe, console).data.train
    rows = []
    for count in ranks:
        with console.status(f"reading as the first of {count}"):
            batch_size = recipe.training.get("per_device_train_batch_size", 8)
            name = options.recipe.stem
            rows.append(measure_loader(data, name=name, batch_size=batch_size, ranks=count, seconds=options.seconds))
    if options.json is not None:
        Results.here(command(), rows).write(options.json)
    rate, source = training_rate(options, recipe)
    print_loaders(rows, rate, source, console)


def training_rate(options: Options, recipe: Recipe) -> tuple[float, str]:
    """The tokens per second that one process trains on, and where the number is from."""
    if options.training_rate is not None:
        return options.training_rate, "as given"
    flops = account(recipe.model_config(), context=recipe.data.sequence_length).training_flops_per_token
    source = f"a model: {options.utilization:.0%} of {options.peak:g} TFLOP/s"
    return options.utilization * options.peak * 1e12 / flops, source


def print_loaders(rows: Sequence[Row], rate: float, source: str, console: Console) -> None:
    """One table."""
    title = f"one process's loader, and its training at {rate:,.0f} tokens/s ({source})"
    table = Table(title=title, title_justify="left")
    for name in ("source", "processes", "threads", "micro-batch", "tokens/s", "over training"):
        table.add_column(name, justify="left" if name == "source" else "right", no_wrap=True)
    for row in rows:
        assert row.median_s is not None
        assert row.iqr_s is not None
        assert row.tokens_per_s is not None
        kind, _, ranks = row.variant.partition(":")
        time = f"{duration(row.median_s)} ± {row.iqr_s / row.median_s / 2:.0%}"
        speed = row.tokens_per_s
        table.add_row(kind, ranks, str(row.threads), time, f"{speed:,.0f}", f"{speed / rate:,.1f}×")
    console.print(table)


def _number(text: str) -> int:
    if not (text.strip().isdigit() and int(text) > 0):
        raise ConfigError(f"--ranks={text.strip()!r} must be numbers of processes, as in 1,2,4")
    return int(text)
