"""The command that a file of numbers names."""

import sys
from types import SimpleNamespace

import pytest

from moepp.bench import command


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (None, "moepp 'a b'"),
        ("moepp.__main__", "moepp 'a b'"),
        ("experiments.__main__", "python -m experiments 'a b'"),
        ("experiments.table3", "python -m experiments.table3 'a b'"),
    ],
)
def test_it_is_the_one_that_was_typed(module: str | None, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = None if module is None else SimpleNamespace(name=module)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    monkeypatch.setattr(sys, "argv", ["anything", "a b"])
    assert command() == text
