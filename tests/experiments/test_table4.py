"""Checkpoints beside the paper's scores; what evaluates them is tested in tests/evaluate."""

import dataclasses
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from experiments import paper, table4
from experiments.entry import run
from experiments.lab import Lab
from experiments.pool import Pool
from experiments.result import Result
from experiments.scales import SCALES
from moepp.data import train_tokenizer
from moepp.evaluate import Evaluation, Skipped

from ..evaluate.test_scores import score
from ..model.factory import tiny_model

FOUND = Evaluation(
    [
        score(label="SciQ", score=0.9, chance=0.25, standard_error=0.01),
        score(label="MMLU", score=0.26, chance=0.25, standard_error=0.01),
        score(label="NQ", score=0.18, chance=0.0, standard_error=0.01, metric="exact_match"),
    ],
    [Skipped("paper_boolq", "BoolQ", "no connection")],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can be loaded."""
    path = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer(["A cow eats grass. " * 9], 280)
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _lab(*checkpoints: Path) -> Lab:
    return Lab(SCALES["tiny"], Pool(console=Console(file=StringIO())), checkpoints)


def _measure(monkeypatch: pytest.MonkeyPatch, folder: Path, evaluation: Evaluation) -> Result:
    def evaluate(model: Any, tokenizer: Any, names: list[str], **_: Any) -> Evaluation:
        assert names == ["paper"]
        assert model.config.vocab_size == len(tokenizer)
        return evaluation

    monkeypatch.setattr(table4, "evaluate_tasks", evaluate)
    return table4.EXPERIMENT.measure(_lab(folder))


def test_scores_stand_beside_the_papers_and_averages_are_over_the_same_tasks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = _measure(monkeypatch, folder, FOUND)
    (table,) = result.tables
    rows = {row[0]: row for row in table.rows}
    assert list(rows)[: len(paper.TABLE_4)] == list(paper.TABLE_4)
    assert rows["SciQ"][1:5] == ["89.7", "90.0 ± 1.0", "25.0", "0"]
    assert rows["MMLU"][2] == "26.0* ± 1.0"
    assert rows["BoolQ"][2:] == ["not measured", "", "", "", "no connection"]
    assert rows["average of these 3"][1:3] == ["44.1", "44.7 ± 0.6"]
    assert rows["average of the 2 above chance"][1:3] == ["53.9", "54.0"]
    (claim,) = result.claims
    assert (claim.outcome, claim.evidence) == ("agrees", "3 of 11 tasks measured; the furthest is MMLU, +1.4.")
    written = Result.read(result.write(tmp_path))
    figure = Figure()
    table4.draw(written, figure)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["the paper's MoE++ 7B", str(folder)]
    (points,) = [line.get_ydata() for line in axes.lines if line.get_marker() == "o"]
    assert list(points) == pytest.approx([90, 18, 26])


def test_another_score_disagrees_and_none_at_all_is_not_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off = dataclasses.replace(FOUND, scores=[score(label="SciQ", score=0.85, standard_error=0.01)])
    assert _measure(monkeypatch, folder, off).claims[0].outcome == "disagrees"
    nothing = _measure(monkeypatch, folder, dataclasses.replace(FOUND, scores=[]))
    assert nothing.claims[0].outcome == "not measured"
    assert "not measured" in nothing.tables[0].rows[0]


def test_without_a_checkpoint_the_papers_table_is_shown() -> None:
    result = table4.EXPERIMENT.measure(_lab())
    assert result.tables[0].rows[-2:] == [
        ["average", "56.2", ""],
        ["average without near-chance tasks", "62.8", ""],
    ]
    assert "--checkpoint" in result.claims[0].evidence


def test_a_folder_that_is_no_model_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        run(["table4", "--checkpoint", str(folder), "--checkpoint", str(tmp_path / "empty"), "--out", str(tmp_path)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "holds no config.json, so no model" in line
