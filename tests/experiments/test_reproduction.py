import dataclasses
from pathlib import Path

import pytest

from experiments import reproduction
from experiments.catalogue import NAMES
from experiments.result import Claim, Result, Table
from experiments.scales import SCALES
from moepp.errors import DataError

FACTS = {"machine": {"gpu": None, "processor": "a CPU"}, "versions": {"moepp": "0", "torch": "2"}, "command": "x"}
RESULT = Result(
    name="table3",
    title="Table 3: expert throughput and quality over τ",
    scale="tiny",
    tables=[Table("Ours", ["τ", "a|b"], [["0.5", "1.25"]], "A note.")],
    claims=[
        Claim("It is faster.", "agrees", "+25 %.", "paper"),
        Claim("It is better.", "unresolved", "+0.1 [-0.1, +0.3].", "paper"),
        Claim("It is new.", "agrees", "+1.", "ours"),
        Claim("It is random.", "disagrees", "+2.", "control"),
    ],
    seeds=[0, 1],
    facts=FACTS,
    trained=[FACTS | {"machine": {"gpu": "a GPU", "processor": "a CPU"}}],
)


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = {name: dataclasses.replace(one, results=tmp_path / name) for name, one in SCALES.items()}
    monkeypatch.setattr(reproduction, "SCALES", scales)
    RESULT.write(tmp_path / "tiny")
    (tmp_path / "tiny" / "table3.svg").write_text("<svg/>")
    monkeypatch.setattr(reproduction, "PAGE", tmp_path / "docs" / "reproduction.md")
    page = reproduction.page_text()
    assert "| 0.5 | 1.25 |" in page
    assert "a\\|b" in page
    assert "![Table 3: expert throughput and quality over τ](../tiny/table3.svg)" in page
    link = "[Table 3](#table-3-expert-throughput-and-quality-over-τ)"
    assert f"| {link} | tiny | It is faster. | +25 %. | **agrees** |" in page
    assert "- *unresolved*: It is better. +0.1 [-0.1, +0.3]." in page
    assert [page.count(claim.text) for claim in RESULT.claims] == [2, 2, 1, 1]
    assert "- *holds*: It is new. +1." in page
    assert "- *control: does not hold*: It is random. +2." in page
    assert page.count("Not measured.") == len(NAMES) - 1
    assert f"| tiny | 1 of {len(NAMES)} | a GPU | a CPU | moepp 0, torch 2 |" in page
    assert "| gpu | not measured | | | |" in page
    assert "**tiny**, seeds 0, 1\n" in page
    assert "Versions are mixed" not in page


def test_mixed_versions_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = {name: dataclasses.replace(one, results=tmp_path / name) for name, one in SCALES.items()}
    monkeypatch.setattr(reproduction, "SCALES", scales)
    older = FACTS | {"versions": {"moepp": "0", "torch": "1"}}
    dataclasses.replace(RESULT, trained=[older]).write(tmp_path / "tiny")
    assert "**Versions are mixed at tiny**" in reproduction.page_text()


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    assert reproduction.PAGE.read_text(encoding="utf-8") == reproduction.page_text(), "run python -m experiments report"


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "table3.json").write_text("{}")
    with pytest.raises(DataError, match=r"table3\.json is no experiment's result: .*run the experiment again"):
        Result.read(tmp_path / "table3.json")
