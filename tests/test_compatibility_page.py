"""docs/compatibility.md names a test in every row that says "yes", and every test that it names exists."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
TEST = re.compile(r"`?(tests/[\w/]+\.py)::(test_\w+)`?")
ROWS = [line for line in PAGE.splitlines() if line.startswith("|") and not line.startswith("|---")]


@functools.cache
def defined_in(file: str) -> set[str]:
    path = ROOT / file
    if not path.is_file():
        return set()
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize(("file", "name"), sorted(set(TEST.findall(PAGE))))
def test_every_test_that_the_page_names_exists(file: str, name: str) -> None:
    assert name in defined_in(file), f"docs/compatibility.md names {file}::{name}, which does not exist"


def test_the_page_names_tests_at_all() -> None:
    assert len(set(TEST.findall(PAGE))) > 30


@pytest.mark.parametrize("row", [row for row in ROWS if re.search(r"\|\s*yes\b", row)])
def test_a_row_that_says_yes_names_its_test(row: str) -> None:
    assert TEST.search(row), f"no test stands behind this row of docs/compatibility.md: {row}"


def test_every_file_of_compatibility_tests_is_on_the_page() -> None:
    named = {ROOT / file for file, _ in TEST.findall(PAGE)}
    assert set((ROOT / "tests" / "compatibility").glob("test_*.py")) <= named
