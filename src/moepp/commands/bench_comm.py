"""``moepp bench comm``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from rich.console import Console
from rich.table import Table

from ..bench import CommCase, CommResults, CommRow, Link, cells, layer_config, measure_comm
from ..errors import ConfigError
from .bench import known, parse_list, parse_tau, parse_tokens
from .options import require_writable

LOCAL = "none"
"""The bandwidth of no link at all."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, as typed: lists are separated by commas."""

    sizes: str = "0.6b"
    processes: str = "2"
    tokens: str = "256"
    tau: str = "0.1,0.25,0.5,0.75,1"
    bandwidth: str = LOCAL
    latency: str = "0"
    routing: str = "synthetic"
    rounds: int = 20
    seconds: float = 20.0
    seed: int = 0
    json: Path | None = None


def run_bench_comm(options: Options) -> None:
    """Measures, prints one table per case and link, and writes the JSON file, which grows with each case.

    Raises:
        ConfigError: an option has a value that cannot work.
    """
    cases, links = plan(options)
    if options.json is not None:
        require_writable("--json", options.json)
    console = Console()
    rows: list[CommRow] = []
    for case in cases:
        title = f"{case.size}, {case.processes} processes of {case.threads} thread(s), {case.tokens} tokens each"
        with console.status(title) as status:
            found = measure_comm(case, links, say=lambda what, title=title: status.update(f"{title}: {what}"))
        for link in links:
            print_comm(title, link, [row for row in found if of_link(row, link)], console)
        rows += found
        if options.json is not None:
            CommResults.here(rows).write(options.json)


def plan(options: Options) -> tuple[list[CommCase], list[Link | None]]:
    """The cases, and the links that each is measured over."""
    if options.rounds < 5:
        raise ConfigError(f"--rounds={options.rounds} is too few for quartiles; use at least 5")
    if not options.seconds > 0:
        raise ConfigError(f"--seconds={options.seconds:g} must be more than 0")
    routing = cast(Literal["synthetic", "untrained"], known("--routing", options.routing, ("synthetic", "untrained")))
    taus = parse_list("--tau", options.tau, parse_tau)
    if not taus:
        raise ConfigError("--tau=none leaves the vanilla twin alone; give a value like 0.75")
    cases = []
    for size in parse_list("--sizes", options.sizes, str):
        config = layer_config(size)
        for processes in parse_list("--processes", options.processes, _processes):
            if config.num_ffn_experts % processes:
                raise ConfigError(
                    f"--processes={processes} does not divide the {config.num_ffn_experts} FFN experts of "
                    f"--sizes={size}; choose a divisor"
                )
            for tokens in parse_list("--tokens", options.tokens, parse_tokens):
                cases.append(
                    CommCase(
                        size=size,
                        processes=processes,
                        tokens=tokens,
                        taus=taus if routing == "synthetic" else [config.tau],
                        routing=routing,
                        threads=max(1, torch.get_num_threads() // processes),
                        rounds=options.rounds,
                        seconds=options.seconds,
                        seed=options.seed,
                    )
                )
    return cases, _links(options)


def _links(options: Options) -> list[Link | None]:
    latencies = parse_list("--latency", options.latency, lambda text: _number("--latency", text, least=0.0))
    if options.bandwidth == LOCAL:
        if latencies != [0.0]:
            raise ConfigError(f"--latency={options.latency} is added to a link; give --bandwidth, too, e.g. unlimited")
        return [None]
    bandwidths = parse_list("--bandwidth", options.bandwidth, _bandwidth)
    return [Link(bandwidth, latency) for latency in latencies for bandwidth in bandwidths]


def _processes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 2 <= int(text) <= 64):
        raise ConfigError(f"--processes={text} must be a whole number from 2 to 64")
    return int(text)


def _bandwidth(text: str) -> float | None:
    return None if text == "unlimited" else _number("--bandwidth", text, least=1.0)


def _number(option: str, text: str, *, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= 1e6:
        also = f", unlimited, or {LOCAL}" if option == "--bandwidth" else ""
        unit = "Mbit/s" if option == "--bandwidth" else "milliseconds"
        raise ConfigError(f"{option}={text} must be a number of {unit} from {least:g} to 1000000{also}")
    return value


def of_link(row: CommRow, link: Link | None) -> bool:
    """Whether a row was measured over this link."""
    if link is None:
        return not row.linked
    return row.linked and (row.bandwidth_mbit, row.latency_ms) == (link.bandwidth_mbit, link.latency_ms)


def print_comm(title: str, link: Link | None, rows: Sequence[CommRow], console: Console) -> None:
    """One table, and the reason where nothing was measured."""
    where = "without a link" if link is None else str(link)
    if reasons := [row.reason for row in rows if row.reason is not None]:
        console.print(f"{title}, {where}: skipped: {reasons[0]}", highlight=False, soft_wrap=True, markup=False)
        return
    table = Table(title=f"{title}, {where}", title_justify="left", box=None)
    for name in ("variant", "step", "exchange", "compute", "MB sent", "MB wire", "over vanilla"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
