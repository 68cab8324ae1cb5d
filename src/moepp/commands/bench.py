"""``moepp bench experts | layer | router | decode | train``."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..bench import PEERS, Case, Layers, Learned, Results, Row, Step, command, layer_config, run_step
from ..errors import BackendUnavailable, ConfigError, nearest
from ..model import load_config
from ..ops import BACKENDS, check_backend
from ..ops.quantized import SCHEMES
from .bench_tables import print_rows
from .options import require_writable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENS = {"decode": "1,2,4,8"}
"""Where they differ from 2048."""
PAPER_SIZE, PAPER_TOKENS = "7b", 2048

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, as typed: lists are separated by commas."""

    benchmark: str
    sizes: str = "0.6b"
    tokens: str | None = None
    dtype: str = "float32"
    tau: str = "0.1,0.25,0.5,0.75,1"
    device: str = "cpu"
    backends: str = "auto"
    peers: str = "all"
    routing: str = "synthetic"
    model: Path | None = None
    rounds: int = 30
    seconds: float = 20.0
    json: Path | None = None
    paper: bool = False


def run_bench(options: Options) -> None:
    """Measures, prints one table per case and writes the JSON file, which grows with each case.

    Raises:
        ConfigError, DataError: an option has a value that cannot work.
        BackendUnavailable: the device is not there.
    """
    steps = plan(options)
    if options.json is not None:
        require_writable("--json", options.json)
    console = Console()
    rows: list[Row] = []
    layers = Layers()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(steps))
        for step in steps:
            name = step.case.name

            def say(what: str, name: str = name) -> None:
                progress.update(task, description=f"{name}: {what}")

            say("preparing")
            found = run_step(step, layers, rounds=options.rounds, budget=options.seconds, say=say)
            print_rows(name, found, console)
            rows += found
            if options.json is not None:
                Results.here(command(), rows).write(options.json)
            progress.advance(task)


def plan(options: Options) -> list[Step]:
    """The steps that the options ask for, sizes and dtypes outermost, so that layers are made once."""
    device = _device(options.device)
    if options.rounds < 5:
        raise ConfigError(f"--rounds={options.rounds} is too few for quartiles; use at least 5")
    if not options.seconds > 0:
        raise ConfigError(f"--seconds={options.seconds:g} must be more than 0")
    learned = _learned(options)
    dtypes = parse_list("--dtype", options.dtype, lambda text: DTYPES[known("--dtype", text, DTYPES)])
    taus = parse_list("--tau", options.tau, parse_tau)
    backends = (
        list(BACKENDS)
        if options.backends == "all"
        else parse_list("--backends", options.backends, lambda text: _backend(text, options.benchmark))
    )
    if options.benchmark in ("router", "layer"):
        peers = []
    elif options.peers == "all":
        peers = list(PEERS)
    else:
        peers = parse_list("--peers", options.peers, lambda text: known("--peers", text, PEERS))
    if options.benchmark == "router" and not taus and not options.paper:
        raise ConfigError("--tau=none leaves nothing to measure in the benchmark 'router'; give a value like 0.75")
    sizes = parse_list("--sizes", options.sizes, lambda text: text)
    tokens = parse_list("--tokens", options.tokens or TOKENS.get(options.benchmark, "2048"), parse_tokens)
    if options.paper:
        if options.benchmark not in ("experts", "router"):
            raise ConfigError(f"--paper is of the benchmarks 'experts' and 'router', not of {options.benchmark!r}")
        sizes, tokens = [PAPER_SIZE], [PAPER_TOKENS]
    if learned is not None:
        sizes = [options.model.name if options.model else ""]
    steps = []
    for size in sizes:
        config = layer_config(size) if learned is None else load_config(learned.folder).moe
        for dtype in dtypes:
            for count in tokens:
                case = Case(
                    benchmark=options.benchmark,
                    size=size,
                    config=config,
                    dtype=dtype,
                    device=device,
                    tokens=count,
                    routing="synthetic" if learned is None else "learned",
                )
                steps.append(
                    Step(case=case, taus=taus, backends=backends, peers=peers, paper=options.paper, learned=learned)
                )
    return steps


def known(option: str, text: str, names: Collection[str]) -> str:
    """The name, if there is such a thing.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    if text not in names:
        raise ConfigError(f"{option}={text} does not exist; {nearest(text, names)}")
    return text


def _learned(options: Options) -> Learned | None:
    known("--routing", options.routing, ("synthetic", "learned"))
    if options.routing == "synthetic":
        if options.model is not None:
            raise ConfigError("--model is for --routing=learned; give that too, or leave it out")
        return None
    if options.model is None:
        raise ConfigError("--routing=learned needs a trained model; give --model FOLDER, e.g. runs/demo")
    if options.benchmark not in ("experts", "layer", "train") or options.paper:
        raise ConfigError("--routing=learned is for the benchmarks experts, layer and train, without --paper")
    return Learned.find(options.model)


def _device(text: str) -> str:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise ConfigError(f"--device={text} does not exist; use cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device={text} is not supported; use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(f"--device={text} needs a CUDA GPU and torch sees none; use cpu")
    return text


def parse_list(option: str, text: str, read: Callable[[str], Item]) -> list[Item]:
    """A list separated by commas; ``none`` is the empty one for the options that may be.

    Raises:
        ConfigError: it names nothing.
    """
    if text == "none" and option in ("--tau", "--peers"):
        return []
    found = [read(part.strip()) for part in text.split(",") if part.strip()]
    if not found:
        raise ConfigError(f"{option}={text!r} names nothing; give values separated by commas")
    return found


def parse_tau(text: str) -> float:
    """A value of ``--tau``; ConfigError where it is none."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ConfigError(f"--tau={text} is outside (0, 1]; the paper uses 0.1 to 1")
    return value


def parse_tokens(text: str) -> int:
    """A value of ``--tokens``; ConfigError where it is none."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(f"--tokens={text} must be a whole number of at least 1")
    return int(text)


def _backend(text: str, benchmark: str) -> str:
    if benchmark != "decode" or text not in SCHEMES:
        check_backend(text)
    return text
