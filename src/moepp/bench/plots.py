"""The pictures of ``docs/performance.md``."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

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
