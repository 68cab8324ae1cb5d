"""The pictures of ``docs/performance.md`` and ``docs/communication.md``."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .comm_page import modelled_step, picture
from .comm_page import plotted as comm_plotted
from .comm_rows import CommResults, CommRow
from .report import PLOTS, Machine, plotted
from .rows import Row


def write_plots(machine: Machine, folder: Path) -> list[Path]:
    """Draws what there are rows for."""
    draw = {"bound": _bound, "peers": _peers}
    written = []
    for kind, title in PLOTS.items():
        rows = plotted(kind, machine.rows)
        if rows:
            figure = Figure(figsize=(8, 4.5), layout="constrained")
            draw[kind](figure, rows)
            figure.suptitle(f"{title}\n{machine.title}", fontsize="medium")
            path = folder / f"performance-{machine.slug}-{kind}.png"
            figure.savefig(path, dpi=110, metadata={"Software": None})
            written.append(path)
    return written


def _bound(figure: Figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(f"{row.size} {row.dtype} T={row.tokens} {row.routing}", []).append(row)
    for label, of in lines.items():
        of = sorted(of, key=lambda row: row.tau or 0.0)
        axes.plot([row.tau or 0.0 for row in of], [row.fraction_of_bound or 0.0 for row in of], marker="o", label=label)
    axes.axhline(1.0, color="gray", linewidth=0.8)
    axes.set(xlabel="tau", ylabel="speed-up over vanilla / Table 1's bound", ylim=(0, None))
    axes.legend(fontsize="x-small", loc="lower right", ncols=2)


def _peers(figure: Figure, rows: Sequence[Row]) -> None:
    cases = list(dict.fromkeys(map(_case, rows)))
    variants = list(dict.fromkeys(row.variant for row in rows))
    axes = figure.subplots()
    width = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        of = {
            f"{row.size}\n{row.dtype}\nT={row.tokens}": row.fraction_of_peak or 0.0
            for row in rows
            if row.variant == variant
        }
        places = [index + (number - (len(variants) - 1) / 2) * width for index, case in enumerate(cases) if case in of]
        axes.bar(places, [of[case] for case in cases if case in of], width, label=variant)
    axes.set_xticks(range(len(cases)), cases, fontsize="x-small")
    axes.set(ylabel="fraction of the dense peak", ylim=(0, 1))
    axes.legend(fontsize="x-small")


def _case(row: Row) -> str:
    return f"{row.size}\n{row.dtype}\nT={row.tokens}"


def write_comm_plots(results: dict[str, CommResults], folder: Path) -> list[Path]:
    """Draws the files that were measured over several bandwidths."""
    written = []
    for name, one in results.items():
        rows = comm_plotted(one)
        if rows:
            figure = Figure(figsize=(10, 4.2), layout="constrained")
            left, right = figure.subplots(1, 2, width_ratios=(3, 2))
            _gains(left, rows)
            _bytes(right, rows)
            first = rows[0]
            figure.suptitle(
                f"One MoE layer of size {first.size}, forward and backward, {first.processes} processes, "
                f"{first.tokens} tokens each, {first.dtype}",
                fontsize="medium",
            )
            path = folder / picture(name)
            figure.savefig(path, dpi=110, metadata={"Software": None})
            written.append(path)
    return written


def _gains(axes: Axes, rows: Sequence[CommRow]) -> None:
    """Measured points with their quartiles, the link without a limit at the right; lines are the model's."""
    limits = sorted({row.bandwidth_mbit for row in rows if row.bandwidth_mbit is not None})
    unlimited = limits[-1] * 8
    fine = [limits[0] * (limits[-1] / limits[0]) ** (step / 50) for step in range(51)]
    free = {row.tau: row for row in rows if row.bandwidth_mbit is None}
    for number, tau in enumerate(sorted({row.tau for row in rows if row.tau is not None})):
        of = [row for row in rows if row.tau == tau]
        axes.errorbar(
            [row.bandwidth_mbit or unlimited for row in of],
            [row.gain or 0.0 for row in of],
            yerr=[(row.gain_iqr or 0.0) / 2 for row in of],
            fmt="o",
            color=f"C{number}",
            label=f"tau {tau:g}",
        )
        if None in free:
            model = [modelled_step(free[None], mbit) / modelled_step(free[tau], mbit) for mbit in fine]
            axes.plot(fine, model, color=f"C{number}", linewidth=0.8)
    axes.axhline(1.0, color="gray", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks([*limits, unlimited], [*(f"{limit:g}" for limit in limits), "no limit"])
    axes.minorticks_off()
    axes.set(xlabel="Mbit/s of each link", ylabel="vanilla's step time over MoE++'s", ylim=(0, None))
    axes.legend(fontsize="small", title="points: measured\nlines: model", title_fontsize="small")


def _bytes(axes: Axes, rows: Sequence[CommRow]) -> None:
    slowest = min(row.bandwidth_mbit for row in rows if row.bandwidth_mbit is not None)
    of = [row for row in rows if row.bandwidth_mbit == slowest]
    names = ["vanilla" if row.tau is None else f"{row.tau:g}" for row in of]
    places = range(len(of))
    axes.bar(places, [(row.wire_bytes or 0.0) / 1e6 for row in of], 0.8, color="lightgray", label="counted on the link")
    axes.bar(places, [(row.payload_bytes or 0.0) / 1e6 for row in of], 0.5, label="computed: rows of FFN pairs")
    axes.set_xticks(places, names)
    axes.set(xlabel="tau", ylabel="MB that one process sends in a step")
    axes.margins(y=0.25)
    axes.legend(fontsize="small")
