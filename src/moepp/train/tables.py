"""What a run was trained on, for people."""

from rich.table import Table

from ..data import Data
from ..format import large

_NUMBERS = {"weight": "weight", "documents": "docs", "bytes": "bytes", "tokens": "tokens", "epochs": "epochs"}


def data_table(data: Data) -> Table:
    """One row per source and split; a dash where a number is unknown before a stream is read."""
    table = Table(title=f"Data, corpus hash {data.corpus_hash[:16]}", title_justify="left")
    for title in ("source", "split", *_NUMBERS.values()):
        table.add_column(title, justify="right" if title in _NUMBERS.values() else "left")
    for row in data.rows:
        table.add_row(str(row["source"]), str(row["split"]), *(_number(row.get(name)) for name in _NUMBERS))
    return table


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return large(value) if isinstance(value, int) else "–"
