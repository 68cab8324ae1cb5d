"""The page: self-contained, escaped, with a light and a dark version of every figure."""

import re
from pathlib import Path

import pytest

from moepp.analyze import Figure, Report, Table, write_report


@pytest.fixture
def page(tmp_path: Path) -> str:
    from moepp.analyze import plots  # not at the top: make gpu collects this file where matplotlib is missing

    curves = plots.loss_curves({"a": ([1, 2], [3.0, 2.0])}, {"a": ([2], [2.5])})
    lines = plots.lines_over_steps({"a": ([1, 2], [1.0, 1.2])}, label="y", targets={"a": 1.1})
    bars = plots.ffn_per_token({"a": [1.0, 2.0], "b": [2.0, 2.0]}, {"a": 1.2})
    load = plots.expert_load([[0.5, 0.5], [0.9, 0.1]], ["ffn 0", "zero 1"], ["ffn", "zero"])
    report = Report(
        title="A <title>",
        lead="lead",
        tables=[Table("table", "caption", ["", "x"], [("row", "1.0")])],
        conclusion=["line one"],
        figures=[Figure(f"figure {i}", "caption", svg) for i, svg in enumerate([curves, lines, bars, load])],
        samples={"a": "def f():\n  return '<script>alert(1)</script>'"},
        facts={"seed": "0"},
    )
    path = tmp_path / "report.html"
    write_report(report, path)
    return path.read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_from_outside(page: str) -> None:
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)", page)
    assert "@import" not in page
    assert not re.search(r"url\((?!#|[\"']?#)", page)


def test_text_is_escaped_and_figures_are_not(page: str) -> None:
    assert "A &lt;title&gt;" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert page.count("<svg") == 8


def test_every_figure_has_a_light_and_a_dark_version(page: str) -> None:
    assert page.count('class="light"') == page.count('class="dark"') == 4
    assert "prefers-color-scheme: dark" in page


def test_figures_scale_with_the_page(page: str) -> None:
    for tag in re.findall(r"<svg[^>]*>", page):
        assert "viewBox" in tag
        assert " width=" not in tag
        assert " height=" not in tag


def test_figures_say_units(page: str) -> None:
    for label in ("loss (nats per token)", "optimizer steps", "FFN experts per token", "% of choices"):
        assert label in page


def test_ids_within_the_page_are_the_figures_own(page: str) -> None:
    """A clip path that two figures share by name would cut one at the other's edge."""
    ids = re.findall(r'<clipPath id="([^"]+)"', page)
    assert ids
    shared = {name for name in ids if ids.count(name) > 1}
    boxes = {name: set(re.findall(rf'<clipPath id="{name}">\s*<rect ([^/]*)/>', page)) for name in shared}
    assert all(len(found) == 1 for found in boxes.values())
