"""Benchmark rows for people."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ..bench import Row
from ..format import duration


def print_rows(title: str, rows: Sequence[Row], console: Console) -> None:
    """One table, and a line for each variant that was not measured."""
    table = Table(title=title, title_justify="left")
    for name in ("variant", "tau", "time", "tokens/s", "of peak", "over vanilla", "over peers", "error"):
        left = name in ("variant", "over peers")
        table.add_column(name, justify="left" if left else "right", no_wrap=name in ("variant", "time", "over peers"))
    for row in rows:
        if row.median_s is not None:
            table.add_row(*_cells(row))
    console.print(table)
    for row in rows:
        if row.reason is not None:
            tau = "" if row.tau is None else f" at tau {row.tau:g}"
            console.print(
                f"{row.variant}{tau} not measured: {row.reason}", highlight=False, soft_wrap=True, markup=False
            )


def _cells(row: Row) -> list[str]:
    assert row.median_s is not None
    assert row.iqr_s is not None
    spread = f" ± {row.iqr_s / row.median_s / 2:.0%}" if row.median_s > 0 else ""
    over = {name.removeprefix("transformers:"): ratio for name, ratio in row.speedup_over.items()}
    vanilla = [ratio for name, ratio in over.items() if name.startswith("vanilla:")]
    peers = [f"{ratio:.2f}× {name}" for name, ratio in over.items() if not name.startswith("vanilla:")]
    of_bound = "" if row.fraction_of_bound is None else f" ({row.fraction_of_bound:.2f} of {row.bound:.2f})"
    peak = f"{row.fraction_of_peak:.1%}" if row.fraction_of_peak is not None else ""
    if row.fraction_of_bandwidth is not None:
        peak = f"{row.fraction_of_bandwidth:.1%} of read"
    if row.share_of_layer is not None:
        peak = f"{row.share_of_layer:.1%} of layer"
    return [
        row.variant.replace("transformers:", "hf:"),
        "" if row.tau is None else f"{row.tau:g}",
        duration(row.median_s) + spread,
        "" if row.tokens_per_s is None or not row.tokens else f"{row.tokens_per_s:,.0f}",
        peak,
        f"{vanilla[0]:.2f}×{of_bound}" if vanilla else "",
        "\n".join(peers),
        "" if row.max_relative_error is None else f"{row.max_relative_error:.0e}",
    ]
