"""The command line, in this process."""

import re
import sys
from pathlib import Path

import pytest
import torch

from experiments import entry
from experiments.catalogue import experiment
from experiments.lab import Lab
from experiments.result import Result

from .toy import fill


def _code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        entry.run(arguments)
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel3"], r"error: experiment 'tabel3' does not exist; did you mean 'table3'\?"),
        (["table3", "--scale", "tny"], r"error: --scale='tny' does not exist; did you mean 'tiny'\?"),
        (["table3", "--jobs", "0"], r"error: --jobs=0 must be at least 1"),
        (["table3", "--scale", "gpu"], r"error: --device='cuda' needs a CUDA GPU, and torch sees none here"),
        (["table3", "--device", "gpu"], r"error: --device='gpu' does not exist"),
        (["table3", "--minutes", "-1"], r"error: --minutes=-1 must be positive"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _code(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])


def test_an_experiment_is_run_from_its_own_file_too(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entry, "scale_of", lambda name: lab.scale)
    fill(lab, experiment("table3").runs(lab.scale))
    monkeypatch.setattr(sys, "argv", ["table3.py", "--pool", str(lab.pool.folder), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        entry.main("table3")
    assert not stopped.value.code
    assert Result.read(tmp_path / "table3.json").scale == "toy"
    assert (tmp_path / "table3.svg").is_file()
    assert "Table 3" in capsys.readouterr().out


def test_what_time_does_not_suffice_for_is_exit_code_3(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entry, "scale_of", lambda name: lab.scale)
    assert _code(["pool", "table3", "--pool", str(tmp_path), "--minutes", "1e-9"]) == 3
    runs = len(experiment("table3").runs(lab.scale))
    assert f"0 of {runs} runs are there; the same command goes on" in capsys.readouterr().out
