"""``docs/communication.md`` from result files: the text depends on nothing but the files' content."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from ..format import duration
from .comm_network import Link
from .comm_rows import CommResults, CommRow

FOLDER = "communication"
"""Within the folder of results."""
SERIAL = 2.0
"""How often a process's payload takes the link's time in gloo's all-to-all: it asks for its peer's rows through the
connection on which it sends its own, and gets them after those."""

INTRODUCTION = """\
# What expert parallelism sends

Written by `moepp bench report` from [benchmarks/results/communication](../benchmarks/results/communication); don't edit
it, measure and write it anew. `moepp bench comm --help` has all options.

Under expert parallelism each process has some of the FFN experts, and a token's hidden state travels to the experts it
chose and back. Zero-computation experts are small, every process has them all, and what they do is done at home: only
pairs of a token and an FFN expert are sent ([expert_parallel.py](../src/moepp/model/expert_parallel.py); that exactly
those are, forward and backward, is [tested](../tests/distributed/test_expert_parallel.py) on 2 and 4 processes). With
τ's balance their share is Table 1's, τN / (τN + zero-computation experts), where a vanilla MoE sends all pairs. A step
sends each pair four times (tokens and results forward, their gradients backward), in the tokens' dtype; which rows go
to which expert is told by 8 bytes for each FFN expert and process.

**Method.** One MoE layer, forward and backward, router included, on processes of one machine; capacity is off, every
expert has exactly the share that τ's balance implies (*synthetic* routing; *untrained* is what a fresh router chooses).
All variants run in turns in the same processes, in an order drawn anew each round, alike in all of them; a step begins
at a barrier and ends when the slowest process is through. Times are medians of the rounds, ± half the distance between
quartiles. *Over vanilla* is the vanilla twin's step over this one's in the same round, its median. *Exchange* is the
time that a process spends in all-to-alls, including that in which it waits for the others; *compute* is the rest of its
step. Where there are more processes than cores, they share them, and compute takes longer than it would on as many
machines. *MB sent* is computed from what enters the all-to-alls, for other processes only, by one process in one step;
*MB wire* is what the process's network interface counted, headers included. A layer alone is measured: a whole model
has attention, the optimizer and FSDP's own traffic besides, the same for both, which make all gains smaller.

**Links.** Each process is in a network namespace of its own, connected by virtual Ethernet cables to a bridge; the
kernel's token bucket (`tc … tbf`) limits both directions of each cable. Where latency is added, packets go through TUN
devices and a thread that hands them on when their time has come, because this kernel has no `netem`; the time of an
exchange of one number, which each table gives, shows what there really was. Namespaces need Linux and root; elsewhere
the command says so and skips them."""

MODEL = """\
**The lines are a model**, the points are measured: a step over a link takes as long as without a limit, plus what the
process sends over the bandwidth, times 2 for the two directions. Gloo, through which the processes talk, asks for a
peer's rows over the connection on which it sends its own, so that without latency the two directions follow each other
(seen in an all-to-all alone: 0.79 MB each way at 25 Mbit/s take one process 263 ms and the other 525; one way alone
263). A transport that sends both ways at a time would halve the bandwidth at which a given gain is reached; so does
latency here, when both have asked before either answers."""


NO_GAIN = """\
MoE++ goes through as many exchanges as its twin, five a step, and its larger router and its zero-computation experts
are work that the twin has not. Where a step is mostly that, with few tokens or a narrow layer, nothing is gained;
latency moves the gain towards 1 as well, and the faster the link, the more of the gain is compute's. Compute itself
shrinks less than the pairs do where each expert has few of them: reading its weights costs more than multiplying. These
are the measurements whose gain is not above 1 by more than half the distance between its quartiles:"""


def cells(row: CommRow) -> list[str]:
    """A measured row's columns: variant, step, exchange, compute, MB sent, MB wire, over vanilla."""
    assert row.step_s is not None
    assert row.step_iqr_s is not None
    return [
        "vanilla" if row.tau is None else f"tau {row.tau:g}",
        f"{duration(row.step_s)} ± {row.step_iqr_s / row.step_s / 2:.0%}",
        duration(row.exchange_s or 0.0),
        duration(row.compute_s or 0.0),
        f"{(row.payload_bytes or 0.0) / 1e6:.3g}",
        "" if row.wire_bytes is None else f"{row.wire_bytes / 1e6:.3g}",
        "" if row.tau is None else f"{row.gain or 0.0:.2f} ± {(row.gain_iqr or 0.0) / 2:.2f}",
    ]


def read_comm(folder: Path) -> dict[str, CommResults]:
    """All result files of a folder, by name."""
    return {path.stem: CommResults.read(path) for path in sorted(folder.glob("*.json"))}


def comm_page(results: dict[str, CommResults], images: str = "images") -> str:
    """The whole page.

    Args:
        images: where the plots are, seen from the page.
    """
    parts = [INTRODUCTION, "## Step time against bandwidth"]
    swept = {name: rows for name, one in results.items() if (rows := plotted(one))}
    for name, rows in swept.items():
        parts.append(f"**{_work(rows[0])}: speed-up of a step over vanilla**")
        parts += [f"![Step time and bytes, {name}]({images}/{picture(name)})", _gains(rows)]
    if swept:
        parts.append(MODEL)
    parts += _no_gain([row for one in results.values() for row in one.rows])
    for one in results.values():
        machine = one.machine
        where = f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"
        parts += [f"```console\n{one.command}\n```", f"On {where}."]
        for title, rows in groupby(one.rows, key=_title):
            parts.append(f"**{title}**")
            parts += _table(list(rows))
    return "\n\n".join(parts) + "\n"


def picture(name: str) -> str:
    """The file name of a result file's plot."""
    return f"communication-{name}.png"


def plotted(results: CommResults) -> list[CommRow]:
    """The rows of a plot against bandwidth; none where there is nothing to draw it against."""
    rows = [row for row in results.rows if row.linked and not row.latency_ms and row.step_s is not None]
    return rows if len({row.bandwidth_mbit for row in rows}) > 2 else []


def modelled_step(free: CommRow, bandwidth_mbit: float) -> float:
    """Seconds of a step over a link, from the same step's over a link without a limit: see :data:`MODEL`."""
    assert free.step_s is not None
    assert free.payload_bytes is not None
    return free.step_s + SERIAL * free.payload_bytes * 8 / (bandwidth_mbit * 1e6)


def _gains(rows: Sequence[CommRow]) -> str:
    """The gain over vanilla, a line for each tau and a column for each bandwidth, and the share of the pairs."""
    limits = list(dict.fromkeys(row.bandwidth_mbit for row in rows))
    lines = [
        ["tau", "of vanilla's pairs", *(str(Link(limit)) for limit in limits)],
        ["---", *["--:"] * (len(limits) + 1)],
    ]
    pairs = rows[0].pairs or 1.0
    for tau in dict.fromkeys(row.tau for row in rows if row.tau is not None):
        of = {row.bandwidth_mbit: row for row in rows if row.tau == tau}
        gains = [f"{of[limit].gain or 0.0:.2f}× ± {(of[limit].gain_iqr or 0.0) / 2:.2f}" for limit in limits]
        lines.append([f"{tau:g}", f"{(of[limits[0]].pairs or 0.0) / pairs:.1%}", *gains])
    return _markdown(lines)


def _title(row: CommRow) -> str:
    link = str(Link(row.bandwidth_mbit, row.latency_ms)) if row.linked else "no link"
    return f"{_work(row)}, {row.routing} routing: {link}"


def _work(row: CommRow) -> str:
    return f"{row.size}, {row.processes} processes, {row.tokens} tokens each"


def _table(rows: Sequence[CommRow]) -> list[str]:
    if reasons := [row.reason for row in rows if row.reason is not None]:
        return [f"Skipped: {reasons[0]}."]
    names = ("variant", "step", "exchange", "compute", "MB sent", "MB wire", "over vanilla")
    lines = [names, ["---"] + ["--:"] * (len(names) - 1), *map(cells, rows)]
    small = f"An exchange of one number took {duration(rows[0].small_exchange_s or 0.0)}."
    return [_markdown(lines), small]


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _no_gain(rows: Sequence[CommRow]) -> list[str]:
    """Where MoE++ was not clearly faster: the median gain is within half the quartiles' distance of 1, or below."""
    found = [
        f"- {_title(row)}, tau {row.tau:g}: {row.gain:.2f} ± {(row.gain_iqr or 0.0) / 2:.2f}"
        for row in rows
        if row.tau is not None and row.gain is not None and row.gain - (row.gain_iqr or 0.0) / 2 <= 1
    ]
    text = "\n".join(found) if found else "Nowhere in these measurements."
    return ["## Where MoE++ is not faster", NO_GAIN, text, "## All measurements"]
