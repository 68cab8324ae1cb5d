import dataclasses
from pathlib import Path

import pytest

from experiments import reproduction
from experiments.catalogue import NAMES
from experiments.result import Claim, Result, Table
from experiments.scales import SCALES
from moepp.errors import DataError

RESULT = Result(
    name="table3",
    title="Table 3: expert throughput and quality over τ",
    scale="tiny",
    tables=[Table("Ours", ["τ", "a|b"], [["0.5", "1.25"]], "A note.")],
    claims=[Claim("It is faster.", "agrees", "+25 %."), Claim("It is better.", "unresolved", "+0.1 [-0.1, +0.3].")],
    facts={"machine": {"gpu": None, "processor": "a CPU"}, "versions": {"moepp": "0", "torch": "2"}, "command": "x"},
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
    assert page.index("What agrees") < page.index("It is faster.") < page.index("What this scale cannot tell")
    assert "(#table-3-expert-throughput-and-quality-over-τ), tiny" in page
    assert page.count("Not measured.") == len(NAMES) - 1
    assert "| gpu | not measured | | |" in page


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    assert reproduction.PAGE.read_text(encoding="utf-8") == reproduction.page_text(), "run python -m experiments report"


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "table3.json").write_text("{}")
    with pytest.raises(DataError, match=r"table3\.json is no experiment's result: .*run the experiment again"):
        Result.read(tmp_path / "table3.json")
