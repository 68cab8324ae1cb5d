"""One self-contained HTML page: no external request, light and dark, readable on a phone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .templates import render


@dataclass(frozen=True)
class Figure:
    """A picture with its words."""

    title: str
    caption: str
    svg: Mapping[str, str]
    """By theme: ``light`` and ``dark``."""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    title: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Report:
    """What the page says, in this order."""

    title: str
    lead: str
    tables: Sequence[Table]
    conclusion: Sequence[str]
    figures: Sequence[Figure]
    samples: Mapping[str, str]
    """Model -> prompt and continuation."""
    facts: Mapping[str, str]
    """How the numbers were made: command, machine, versions, seed, corpus."""


def write_report(report: Report, path: Path) -> None:
    """Writes the page."""
    path.write_text(render("report.html.jinja", report=report), encoding="utf-8")
