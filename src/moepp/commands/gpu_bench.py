"""``python -m moepp.commands.gpu_bench``: the GPU's tables, the most important first, in at most eight minutes.

Needs nothing beyond torch, transformers, typer and rich. What there was no time for is named.
"""

import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from ..bench import PEERS, Case, Layers, Results, Row, Step, layer_config, run_step
from ..errors import BackendUnavailable, MoEPPError
from .bench import require_writable
from .bench_tables import print_rows

SIZES = ("7b", "0.6b", "2b", "1b")
TOKENS = (8192, 65536, 2048, 32768)
TAUS = (0.1, 0.25, 0.5, 0.75, 1.0)
BACKENDS = ("auto", "triton")  # auto is grouped_mm on a GPU
SECONDS = 270.0  # with the tests and the training check before it, make gpu stays within eight minutes
RESULTS = Path("benchmarks/results")


def plan(
    sizes: Sequence[str] = SIZES,
    tokens: Sequence[int] = TOKENS,
    device: str = "cuda",
    backends: Sequence[str] = BACKENDS,
) -> list[Step]:
    """All steps by importance: what the targets speak of for each size in turn, then other numbers of tokens."""
    steps = []
    for count in tokens:
        for size in sizes:
            for benchmark in ("layer", "experts", "train", "router"):
                case = Case(
                    benchmark=benchmark,
                    size=size,
                    config=layer_config(size),
                    dtype=torch.bfloat16,
                    device=device,
                    tokens=count,
                    routing="synthetic",
                )
                steps.append(
                    Step(
                        case=case,
                        taus=(0.75,) if benchmark == "router" else TAUS,
                        backends=backends,
                        peers=list(PEERS) if benchmark in ("experts", "train") else [],
                    )
                )
    return steps


def run_plan(
    steps: Sequence[Step],
    seconds: float,
    done: Callable[[Step, list[Row]], None],
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[Step, str]]:
    """Runs steps until the time is over, sharing what is left of it among those to come.

    A step's share is for its timing; checking and preparing come on top, so later steps get what earlier ones left.

    Returns:
        The steps that there was no time or memory for, with the reason.
    """
    begin, missing = clock(), []
    layers = Layers()
    for index, step in enumerate(steps):
        left = seconds - (clock() - begin)
        if left <= 0:
            return [*missing, *((other, "no time left") for other in steps[index:])]
        # Half for the timing: at most a tenth of all, so that one step cannot eat what the others need.
        budget = min(max(left / (len(steps) - index) / 2, 1.0), seconds / 10)
        try:
            rows = run_step(step, layers, rounds=30, budget=budget)
        except torch.OutOfMemoryError as error:
            missing.append((step, str(error).splitlines()[0]))
            continue
        done(step, rows)
    return missing


def run_gpu_bench(console: Console, folder: Path = RESULTS) -> None:
    """Measures, prints and writes ``folder/<gpu>.json`` after each step.

    Raises:
        BackendUnavailable: there is no CUDA GPU.
        ConfigError: the file cannot be written.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable("make gpu needs a CUDA GPU and torch sees none; run it on a machine that has one")
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    file = folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    require_writable("results", file)
    rows: list[Row] = []

    def done(step: Step, found: list[Row]) -> None:
        print_rows(step.case.name, found, console)
        rows.extend(found)
        Results.here("make gpu", rows).write(file)

    for step, reason in run_plan(plan(), SECONDS, done):
        console.print(f"{step.case.name} not measured: {reason}", highlight=False, markup=False)
    console.print(f"results: {file}; write docs/performance.md with `moepp bench report`", highlight=False)


if __name__ == "__main__":
    try:
        run_gpu_bench(Console())
    except MoEPPError as error:
        sys.exit(f"error: {error}")
