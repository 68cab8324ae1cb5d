"""``moepp bench model``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import torch
from rich.console import Console
from rich.table import Table

from ..bench import MODELS, SIZES, Job, Results, Route, Row, Task, command, run_models
from ..errors import ConfigError
from .bench import known
from .bench_tables import duration
from .options import require_at_least_one, require_writable

DTYPES = ("float32", "bfloat16")
GENERATION_BATCHES = (1, 8)
PROMPT = 32  # tokens; as short as prompts go, for what is measured is generating


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, as typed: lists are separated by commas."""

    sizes: str = "0.6b"
    dtype: str = "float32"
    tasks: str = "training,generation"
    models: str = ",".join(MODELS[:3])
    routing: str = "untrained"
    batch: int = 2
    sequence: int = 512
    steps: int = 2
    new_tokens: int = 16
    rounds: int = 2
    json: Path | None = None


def run_bench_model(options: Options) -> None:
    """Measures, prints one table per task and batch, and writes the JSON file, which grows with each.

    Raises:
        ConfigError: an option has a value that cannot work.
    """
    groups = plan(options)
    if options.json is not None:
        require_writable("--json", options.json)
    console = Console()
    rows: list[Row] = []
    for jobs in groups:
        first = jobs[0]
        title = f"{first.task}, {first.size}, {first.dtype}, batch {first.batch}, {first.threads} threads"
        with console.status(title) as status:
            found = run_models(
                jobs, rounds=options.rounds, say=lambda what, title=title: status.update(f"{title}: {what}")
            )
        print_models(title, found, console)
        rows += found
        if options.json is not None:
            Results.here(command(), rows).write(options.json)


def plan(options: Options) -> list[list[Job]]:
    """The jobs that are compared with each other, group by group."""
    require_at_least_one(options, "batch", "sequence", "steps", "new_tokens", "rounds")
    if options.rounds * options.steps < 2:
        raise ConfigError("--rounds=1 and --steps=1 leave one time, which has no spread; raise one of them")
    routing = cast(Route, known("--routing", options.routing, get_args(Route)))
    names = {
        name: [known(f"--{name}", text.strip(), allowed) for text in getattr(options, name).split(",")]
        for name, allowed in {
            "sizes": SIZES,
            "dtype": DTYPES,
            "tasks": get_args(Task),
            "models": MODELS,
        }.items()
    }
    groups = []
    for size in names["sizes"]:
        for dtype in names["dtype"]:
            for task in names["tasks"]:
                for batch in (options.batch,) if task == "training" else GENERATION_BATCHES:
                    groups.append(
                        [
                            Job(
                                task=cast(Task, task),
                                variant=model,
                                size=size,
                                dtype=dtype,
                                batch=batch,
                                sequence=options.sequence if task == "training" else PROMPT,
                                new_tokens=options.new_tokens,
                                steps=options.steps,
                                routing=routing,
                                threads=torch.get_num_threads(),
                            )
                            for model in names["models"]
                        ]
                    )
    return groups


def print_models(title: str, rows: Sequence[Row], console: Console) -> None:
    """One table, and a line for each model that was not measured."""
    table = Table(title=title, title_justify="left")
    for name in ("model", "time", "tokens/s", "FFN/token", "peak memory", "over the others"):
        table.add_column(name, justify="left" if name in ("model", "over the others") else "right", no_wrap=True)
    for row in rows:
        if row.median_s is not None and row.iqr_s is not None and row.peak_memory_bytes is not None:
            table.add_row(
                row.variant,
                f"{duration(row.median_s)} ± {row.iqr_s / row.median_s / 2:.0%}",
                f"{row.tokens_per_s:,.1f}",
                f"{row.ffn_per_token:.2f}",
                f"{row.peak_memory_bytes / 2**30:.2f} GiB",
                "\n".join(f"{ratio:.2f}× {name}" for name, ratio in row.speedup_over.items()),
            )
    console.print(table)
    for row in rows:
        if row.reason is not None:
            console.print(f"{row.variant} not measured: {row.reason}", highlight=False, soft_wrap=True, markup=False)
