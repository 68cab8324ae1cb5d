"""``moepp convert`` from the command line."""

import json
import re
import sys
from pathlib import Path

import pytest

from moepp import cli
from moepp.convert import REPORT
from moepp.model import MoEPPForCausalLM

from ..released_factory import FIXTURE


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["moepp", "convert", *map(str, arguments)])
    cli.main()


def test_there_and_back_with_a_table_of_what_was_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, FIXTURE, tmp_path / "ours")
    shown = capsys.readouterr().out
    for row in (r"FFN experts\W+24\W+6\W+216\.00 KiB", r"kept aside\W+1\W+0\W+256 B", r"all\W+63\W+38\W+295\.12 KiB"):
        assert re.search(row, shown), shown
    assert f"every key: {tmp_path / 'ours' / REPORT}" in shown
    MoEPPForCausalLM.from_pretrained(tmp_path / "ours")
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, tmp_path / "ours", tmp_path / "back", "--to", "released")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == "MoE++"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{tmp}", "{tmp}/new"), r"error: \S+ holds no config\.json, so no model"),
        ((FIXTURE, FIXTURE), r"error: \S+released-tiny exists and is not an empty folder; give a new one"),
        ((FIXTURE, "{tmp}/new", "--to", "release"), r"error: --to='release' does not exist; did you mean 'released'\?"),
        ((FIXTURE, "{tmp}/new", "--to", "released"), r"error: \S+ is in the format 'released' already"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: tuple, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *(str(argument).format(tmp=tmp_path) for argument in arguments))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert re.match(message, line), line
    assert not (tmp_path / "new").exists()
