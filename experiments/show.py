"""A result on the terminal."""

from rich.console import Console
from rich.table import Table as Grid

from .result import Claim, Result

_STYLES = {"agrees": "green", "disagrees": "red", "unresolved": "yellow", "not measured": "dim"}


def show(result: Result, console: Console) -> None:
    """Prints the tables, then what they decide."""
    console.rule(result.title)
    for table in result.tables:
        grid = Grid(title=table.title, title_justify="left", caption=table.note or None, caption_justify="left")
        for index, name in enumerate(table.head):
            grid.add_column(name, justify="left" if index == 0 else "right")
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid)
    for claim in result.claims:
        style = _STYLES[claim.outcome]
        console.print(f"[{style}]{claim.verdict}[/]: {sentences(claim)}", highlight=False)
    for limit in result.limits:
        console.print(limit, style="dim", highlight=False)


def sentences(claim: Claim) -> str:
    """The claim, and what decides it."""
    return f"{claim.text} {claim.evidence.rstrip('.')}."
