"""Rules about the source itself that no other tool checks; import directions are import-linter's."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
LINES, LINES_OF = 300, {"modeling_moepp.py": 450}
HEAVY = ("transformers", "datasets", "accelerate", "matplotlib", "omegaconf", "typer", "rich")
# What .gitignore leaves out, and git itself.
IGNORED = {".git", ".venv", "runs", "__pycache__", ".hypothesis", ".ruff_cache", "build", "dist"}
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".sh", ".html", ""}
# A home, a mount or a workplace, at the start of a path: "site.org/home/x" is none.
MACHINE_PATH = re.compile(r"(?<![\w.\-/])/(?:home|root|Users|work|mnt|workspace)/\w")


def files_of_the_repository() -> list[Path]:
    found = (path for path in ROOT.rglob("*") if path.is_file() and path.suffix in TEXT)
    return sorted(p for p in found if not any(part in IGNORED for part in p.relative_to(ROOT).parts))


def named_tests(text: str) -> set[tuple[str, str]]:
    """(file, function) of every ``tests/….py::name`` in a text."""
    return set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", text))


def test_importing_moepp_loads_torch_and_no_heavy_library() -> None:
    program = f"import sys, moepp; print('torch' in sys.modules, [m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["True", "[]\n"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_source_file_keeps_to_its_budget_of_lines(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LINES_OF.get(path.name, LINES), "split it, or say in docs/architecture.md why not"


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    files = files_of_the_repository()
    assert {ROOT / "README.md", ROOT / "pyproject.toml", Path(__file__)} <= set(files)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("separator", [" ", '"', "=", "("])
def test_the_pattern_for_machine_paths_finds_one(separator: str) -> None:
    assert MACHINE_PATH.search(separator + "/home" + "/someone")
    assert not MACHINE_PATH.search(separator + "https://site.org/home" + "/page")


def test_every_test_that_docs_math_names_exists() -> None:
    """The table of equations, functions and tests is worth its lines as long as it is true."""
    references = named_tests((ROOT / "docs" / "math.md").read_text(encoding="utf-8"))
    assert references, "docs/math.md names no test"
    missing = []
    for file, name in sorted(references):
        path = ROOT / file
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if name not in functions or not name.startswith("test_"):
            missing.append(f"{file}::{name}")
    assert not missing


def test_references_to_tests_are_found_in_a_text() -> None:
    text = "| Eq. 7 | `losses.balance_loss` | `tests/layers/test_by_hand.py::test_x`, tests/test_config.py::test_y[1] |"
    assert named_tests(text) == {("tests/layers/test_by_hand.py", "test_x"), ("tests/test_config.py", "test_y")}
