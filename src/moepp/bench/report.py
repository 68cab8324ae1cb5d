"""``docs/performance.md`` from result files: the text depends on nothing but the files' content."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ..format import duration
from .paper import FLOPS, MILLISECONDS
from .rows import Results, Row
from .targets import CPU_TARGETS, GPU_TARGETS, Target

BENCHMARKS = ("experts", "layer", "router", "decode", "train", "model")
METHOD = """\
# Performance

Written by `moepp bench report` from [benchmarks/results](../benchmarks/results); don't edit it, measure and write it
anew.

**Method.** What is compared runs in one process, in turns, in an order drawn anew each round, after warming up; a
time is the median of the rounds, ± half the distance between quartiles. Ratios are between variants of one run. The
*peak* is the fastest dense matrix product (tokens by the first projection of an expert; on a CPU the faster of
torch.mm and oneDNN with packed weights, both into memory that is there already) in that same run, and *of peak*
counts only FLOPs of FFN experts that really ran. `limit:onednn` is oneDNN's products alone, at the rows that an
expert gets. Why targets are missed where they are: [kernels](kernels.md#what-limits-it). The *bound* is Table 1's,
FFN assignments of the vanilla twin over MoE++'s, at the routing that was run; *fraction of the bound* is the speed-up
over the twin, on the same backend and dtype, divided by it. *Synthetic* routing gives each expert exactly the share
that tau's balance implies; *learned* is a trained model's. Before anything is timed, outputs, and in training all
gradients, are compared with the backend `reference` on the same tensors; what deviates is listed as wrong and not
timed. T is tokens. `auto` is what a user gets who chooses nothing: on a CPU `onednn` forward and `fused` with a
backward pass, `grouped` on a GPU."""

NOTE_A = """\
All T tokens go to one expert of the type. The zero-computation experts of a layer make one pass over the tokens
together, and each type alone is charged that whole pass."""


@dataclass(frozen=True)
class Machine:
    """All results of one machine and device."""

    title: str
    gpu: bool
    results: Sequence[Results]

    @property
    def slug(self) -> str:
        """For file names."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def rows(self) -> list[Row]:
        return [row for one in self.results for row in one.rows]


def machines(results: Sequence[Results]) -> list[Machine]:
    """CPUs first."""
    found: dict[tuple[bool, str], list[Results]] = {}
    for one in results:
        gpu = any(row.device.startswith("cuda") for row in one.rows)
        title = one.machine["gpu"] if gpu else f"{one.machine['processor']}, {one.machine['cores']} threads"
        found.setdefault((gpu, title), []).append(one)
    return [Machine(title, gpu, found[gpu, title]) for gpu, title in sorted(found)]


def read_results(folder: Path) -> list[Results]:
    """All result files of a folder, by name."""
    return [Results.read(path) for path in sorted(folder.glob("*.json"))]


def report(results: Sequence[Results], images: str = "images") -> str:
    """The whole page.

    Args:
        images: where the plots are, seen from the page.
    """
    found = machines(results)
    parts = [METHOD]
    for machine in found:
        parts += _machine(machine, images)
    for gpu, name, targets in ((False, "CPU", CPU_TARGETS), (True, "GPU", GPU_TARGETS)):
        if not any(machine.gpu == gpu for machine in found):
            how = "`make gpu`" if gpu else "`make bench`"
            parts += [
                f"## {name}",
                f"Not measured: no results of a {name} are at hand. {how} measures.",
                _targets([], targets),
            ]
    return "\n\n".join(parts) + "\n"


def _machine(machine: Machine, images: str) -> list[str]:
    rows = machine.rows
    versions = sorted({", ".join(f"{name} {v}" for name, v in one.versions.items()) for one in machine.results})
    parts = [f"## {machine.title}", "; ".join(versions) + ".", "### Targets"]
    parts.append(_targets(rows, GPU_TARGETS if machine.gpu else CPU_TARGETS))
    for kind, text in PLOTS.items():
        if plotted(kind, rows):
            parts.append(f"![{text}]({images}/performance-{machine.slug}-{kind}.png)")
    for benchmark in BENCHMARKS:
        of = [(one.command, row) for one in machine.results for row in one.rows if row.benchmark == benchmark]
        for command in dict.fromkeys(command for command, _ in of):
            parts += [f"### {benchmark}", f"```console\n{command}\n```"]
            parts += _tables([row for its, row in of if its == command])
    return parts


PLOTS = {"bound": "Fraction of the bound against tau", "peers": "Speed of FFN experts, ours and others'"}


def plotted(kind: str, rows: Sequence[Row]) -> list[Row]:
    """The rows that a plot shows."""
    if kind == "bound":
        return [
            row for row in rows if row.benchmark == "layer" and row.variant == "moepp:auto" and row.fraction_of_bound
        ]
    return [
        row
        for row in rows
        if row.benchmark == "experts"
        and row.tau is None
        and row.fraction_of_peak
        and row.variant.startswith(("vanilla:auto", "transformers:", "scattermoe"))
    ]


def _targets(rows: Sequence[Row], targets: Sequence[Target]) -> str:
    lines = []
    for target in targets:
        values = target.values(rows)
        sign = "≤" if target.at_most else "≥"
        measured, verdict = "not measured", ""
        if values:
            worst, best = values[0], values[-1]
            measured = f"{worst[0]:.2f} ({_where(worst[1])})"
            if len(values) > 1:
                measured += f" … {best[0]:.2f}"
            missed = sum(not target.met(value) for value, _ in values)
            verdict = f"missed in {missed} of {len(values)}" if missed else "met"
        lines.append([target.text, target.tokens.text, f"{sign} {target.wanted:g}", measured, verdict])
    return _table(["target", "", "wanted", "measured: worst … best", ""], lines)


def _where(row: Row) -> str:
    tau = "" if row.tau is None else f", tau {row.tau:g}"
    return f"{row.size}, {row.dtype}, T = {row.tokens}{tau}"


def _tables(rows: Sequence[Row]) -> list[str]:
    """One for each size, dtype and routing, and a line for what was not measured."""
    parts = []
    for (size, dtype, routing), group in groupby(rows, key=lambda row: (row.size, row.dtype, _routing(row, rows))):
        of = list(group)
        measured = [row for row in of if row.median_s is not None]
        parts.append(f"**{size}, {dtype}{routing}**")
        if measured:
            columns = [c for c in _columns(measured) if any(c.text(row) for row in measured)]
            parts.append(_table([c.name for c in columns], [[c.text(row) for c in columns] for row in measured]))
        if any(row.variant == "type:zero" for row in measured):
            parts.append(NOTE_A)
        missing = [row for row in of if row.reason is not None]
        reasons = dict.fromkeys((row.variant, row.reason) for row in missing)
        if reasons:
            parts.append("\n".join(f"- {variant}: {reason}" for variant, reason in reasons))
    return parts


def _routing(row: Row, rows: Sequence[Row]) -> str:
    """Rows without routing, the peaks, stand with the others of their command."""
    routing = row.routing or next((other.routing for other in rows if other.routing), None)
    return f", {routing} routing" if routing else ""


@dataclass(frozen=True)
class _Column:
    name: str
    text: Callable[[Row], str]


def _columns(rows: Sequence[Row]) -> list[_Column]:
    others = dict.fromkeys(name for row in rows for name in row.speedup_over if not name.startswith("vanilla:"))
    return [
        _Column("variant", lambda row: row.variant),
        _Column("pass", lambda row: row.pass_ if row.benchmark == "model" else ""),
        _Column("batch", lambda row: str(row.batch or "")),
        _Column("T", lambda row: str(row.tokens) if row.tokens else ""),
        _Column("tau", lambda row: "" if row.tau is None else f"{row.tau:g}"),
        _Column("time", lambda row: duration(row.median_s or 0.0) + _spread(row)),
        _Column("paper, one A100", lambda row: _paper(row)),
        _Column(
            "FLOPs, the paper's and ours", lambda row: f"{FLOPS[row.variant]:,}; {row.flops:,}" if row.flops else ""
        ),
        _Column("tokens/s", lambda row: f"{row.tokens_per_s:,.0f}" if row.tokens_per_s and row.tokens else ""),
        _Column("of peak", lambda row: _percent(row.fraction_of_peak)),
        _Column("of memory read", lambda row: _percent(row.fraction_of_bandwidth)),
        _Column("of layer", lambda row: _percent(row.share_of_layer)),
        _Column("over vanilla", lambda row: _over(row, lambda name: name.startswith("vanilla:"))),
        _Column("bound", lambda row: f"{row.bound:.2f}" if row.bound else ""),
        _Column("fraction of the bound", lambda row: f"{row.fraction_of_bound:.2f}" if row.fraction_of_bound else ""),
        *(
            _Column(
                f"over {name.removeprefix('transformers:')}", lambda row, name=name: _over(row, lambda n: n == name)
            )
            for name in others
        ),
        _Column("FFN experts per token", lambda row: f"{row.ffn_per_token:.2f}" if row.ffn_per_token else ""),
        _Column("memory", lambda row: f"{row.peak_memory_bytes / 2**30:.2f} GiB" if row.peak_memory_bytes else ""),
    ]


def _over(row: Row, about: Callable[[str], bool]) -> str:
    ratios = [ratio for name, ratio in row.speedup_over.items() if about(name)]
    return f"{ratios[0]:.2f}×" if ratios else ""


def _paper(row: Row) -> str:
    return duration(MILLISECONDS[row.variant] / 1e3) if row.variant in MILLISECONDS else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _spread(row: Row) -> str:
    return f" ± {(row.iqr_s or 0) / row.median_s / 2:.0%}" if row.median_s and row.median_s > 0 else ""


def _table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---" if index == 0 else "--:" for index in range(len(names))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, rule, *lines])
