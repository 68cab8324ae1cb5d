"""docs/reproduction.md, from the results beside the experiments: nothing in it is typed by hand but what is said here."""

from collections.abc import Iterator
from pathlib import Path

from .catalogue import NAMES, experiment
from .result import Result, Table
from .scales import HERE, SCALES

PAGE = HERE.parent / "docs" / "reproduction.md"


def write_page(page: Path = PAGE) -> None:
    """Writes the page from all results that are there."""
    page.write_text("\n".join(_lines(page)) + "\n", encoding="utf-8")


def _lines(page: Path) -> Iterator[str]:
    yield "# Reproduction\n"
    for name in NAMES:
        yield f"## {experiment(name).title}\n"
        for scale in SCALES.values():
            path = scale.results / f"{name}.json"
            if path.is_file():
                yield from _section(Result.read(path))


def _section(result: Result) -> Iterator[str]:
    for table in result.tables:
        yield from markdown(table)
    for claim in result.claims:
        yield f"- **{claim.outcome}**: {claim.text} {claim.evidence}"
    yield ""


def markdown(table: Table) -> Iterator[str]:
    """A table in Markdown."""
    yield f"{table.title}\n"
    for row in (table.head, ["---"] * len(table.head), *table.rows):
        yield f"| {' | '.join(row)} |"
    yield ""
