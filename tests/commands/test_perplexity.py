"""``moepp perplexity``: the loss of the training run's own log, and what fewer bits change about it."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from moepp import cli

from ..train.tiny import logged, recipe_of, write_recipe, write_texts


def moepp(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | None:
    monkeypatch.setattr(sys, "argv", ["moepp", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as exit_:
        return exit_.code  # pyright: ignore[reportReturnType]
    return None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("perplexity")
    recipe = recipe_of(write_texts(folder / "texts"), folder / "run")
    recipe["model"]["intermediate_size"] = 64  # int4's kernel takes columns by 32
    with pytest.MonkeyPatch.context() as patch:
        assert moepp(patch, "train", write_recipe(folder / "recipe.yaml", recipe)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def report(trained: Path) -> dict[str, Any]:
    out = trained.parent / "perplexity.json"
    with pytest.MonkeyPatch.context() as patch:
        assert moepp(patch, "perplexity", trained, "--json", out) == 0
    return json.loads(out.read_text(encoding="utf-8"))


def test_every_dtype_is_measured_with_full_and_with_quantised_experts(report: dict[str, Any]) -> None:
    measured = {(row["dtype"], row["experts"]) for row in report["rows"]}
    assert measured == {(d, e) for d in ("float32", "bfloat16") for e in ("full", "int8", "int4")}
    assert len(report["rows"]) == 6


def test_loss_of_the_full_model_is_the_training_runs_own(report: dict[str, Any], trained: Path) -> None:
    full = report["rows"][0]
    assert (full["dtype"], full["experts"]) == ("float32", "full")
    assert full["loss"] == pytest.approx(logged(trained, "eval_loss")[-1]["eval_loss"], rel=1e-5)
    assert full["change"] == full["change_standard_error"] == 0


def test_changes_and_perplexities_follow_from_the_losses(report: dict[str, Any]) -> None:
    full = report["rows"][0]["loss"]
    for row in report["rows"]:
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        assert row["change"] == pytest.approx(row["loss"] - full, abs=1e-9)
        assert abs(row["change"]) < 0.05
    assert all(row["change"] != 0 and row["change_standard_error"] > 0 for row in report["rows"][1:])


def test_bytes_are_those_of_the_experts(report: dict[str, Any]) -> None:
    weights = 2 * 3 * 3 * 32 * 64  # layers, experts, matrices, hidden, intermediate
    scales = 2 * 3 * (2 * 64 + 32)
    size = {(row["dtype"], row["experts"]): row["expert_bytes"] for row in report["rows"]}
    assert size["float32", "full"] == 4 * weights
    assert size["bfloat16", "full"] == 2 * weights
    assert size["float32", "int8"] == size["bfloat16", "int8"] == weights + 2 * scales
    assert size["float32", "int4"] == size["bfloat16", "int4"] == weights // 2 + 4 * weights // 32


def test_the_report_says_where_and_how_it_was_made(report: dict[str, Any]) -> None:
    assert report["command"].startswith("moepp perplexity ")
    assert report["seed"] == 0
    assert report["tokens"] > 0
    assert {"moepp", "torch", "transformers"} <= report["versions"].keys()
    assert report["machine"]["processor"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere"], "holds no recipe.yaml; give the output_dir of a finished training run"),
        (["{run}", "--json", "{tmp}/no/such/out.json"], "cannot be written: No such file"),
    ],
    ids=["no run", "no folder for the numbers"],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    filled = [argument.format(tmp=tmp_path, run=trained) for argument in arguments]
    assert moepp(monkeypatch, "perplexity", *filled) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert message in err
