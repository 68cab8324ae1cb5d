"""``moepp bench loader``: its options, its table and its file."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moepp.bench import Results, Row
from moepp.cli import app
from moepp.commands import bench_loader
from moepp.errors import ConfigError
from moepp.model import account
from moepp.train import load_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    file = tmp_path / "fox.yaml"
    content = {
        "output_dir": str(tmp_path / "run"),
        "model": {"preset": "debug"},
        "tokenizer": {"vocab_size": 300},
        "data": {"sequence_length": 8, "sources": [{"name": "x", "files": [str(tmp_path / "text.txt")]}]},
        "training": {"max_steps": 5, "per_device_train_batch_size": 3},
    }
    file.write_text(json.dumps(content))  # which is YAML
    return file


def fake(data: Any, *, name: str, batch_size: int, ranks: int, seconds: float) -> Row:
    assert len(data) == 5 * batch_size
    assert seconds == 2.0
    return Row(
        benchmark="loader",
        variant=f"memory:{ranks}",
        pass_="loading",
        size=name,
        dtype="int64",
        device="cpu",
        threads=1,
        tokens=24,
        batch=batch_size,
        median_s=0.1,
        iqr_s=0.02,
        tokens_per_s=1500.0 * ranks,
    )


def invoke(*arguments: object) -> Any:
    line = ["bench", "loader", *map(str, arguments)]
    return CliRunner().invoke(app, line, env={"COLUMNS": "160"}, catch_exceptions=False)


def test_each_number_of_processes_has_a_line_and_a_row(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_loader, "measure_loader", fake)
    file = tmp_path / "rows.json"
    done = invoke(recipe, "seed=3", "--ranks", "1,2", "--seconds", 2, "--training-rate", 500, "--json", file)
    assert done.exit_code == 0
    assert "its training at 500 tokens/s (as given)" in done.stdout
    for text in ("100 ms ± 10%", "1,500", "3.0×", "3,000", "6.0×"):
        assert text in done.stdout
    rows = Results.read(file).rows
    assert [(row.variant, row.size, row.batch) for row in rows] == [("memory:1", "fox", 3), ("memory:2", "fox", 3)]


def test_training_s_rate_is_a_share_of_the_peak_unless_given(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    options = bench_loader.Options(recipe=recipe, peak=2.0, utilization=0.25)
    flops = account(loaded.model_config(), context=8).training_flops_per_token
    assert bench_loader.training_rate(options, loaded) == (0.5e12 / flops, "a model: 25% of 2 TFLOP/s")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"ranks": "1,two"}, r"^--ranks='two' must be numbers of processes, as in 1,2,4$"),
        ({"ranks": "0"}, r"^--ranks='0' must be numbers of processes"),
        ({"seconds": 0.0}, r"^--seconds=0.0 must be at least 1$"),
        ({"training_rate": -1.0}, r"^--training-rate=-1.0 must be more than 0$"),
    ],
)
def test_options_that_cannot_work(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench_loader.run_bench_loader(bench_loader.Options(recipe=Path("x.yaml"), **option))
