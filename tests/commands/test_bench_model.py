"""``moepp bench model``: its options, its table and its file."""

import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

import moepp.bench.model
from moepp.bench import Results
from moepp.bench.model import Job, Outcome
from moepp.cli import app
from moepp.commands.bench_model import Options, plan
from moepp.errors import ConfigError


def options_of(line: str) -> Options:
    """What the real command line makes of ``moepp bench model …``."""
    program, command, name, *arguments = shlex.split(line)
    assert (program, command, name) == ("moepp", "bench", "model")
    group: Any = typer.main.get_command(app)
    benchmark: click.Command = group.commands["bench"].commands[name]
    return Options(**benchmark.make_context(name, arguments).params)


def test_the_command_lines_defaults_are_the_options() -> None:
    assert options_of("moepp bench model") == Options()


def fake(job: Job) -> Outcome | str:
    if job.variant == "vanilla:auto":
        return "it is too large"
    return Outcome(seconds=[1.0, 1.5], peak_memory_bytes=3 * 2**30, parameters=1, ffn_per_token=1.25)


def test_the_command_prints_a_table_a_group_and_writes_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moepp.bench.model, "run_job", fake)
    file = tmp_path / "rows.json"
    done = CliRunner().invoke(
        app, ["bench", "model", "--sizes", "tiny", "--json", str(file)], env={"COLUMNS": "160"}, catch_exceptions=False
    )
    assert done.exit_code == 0
    for text in ("training, tiny, float32, batch 2", "generation, tiny, float32, batch 8", "3.00 GiB", "1.25"):
        assert text in done.stdout
    assert done.stdout.count("vanilla:auto not measured: it is too large") == 3
    rows = Results.read(file).rows
    assert [(row.pass_, row.batch, row.tokens) for row in rows[::3]] == [
        ("training", 2, 1024),
        ("generation", 1, 16),
        ("generation", 8, 128),
    ]
    assert len(rows) == 9


def test_sizes_dtypes_and_tasks_are_lists() -> None:
    groups = plan(Options(sizes="tiny,0.6b", dtype="float32, bfloat16", tasks="generation", models="moepp:auto"))
    assert [(jobs[0].size, jobs[0].dtype, jobs[0].batch) for jobs in groups] == [
        (size, dtype, batch) for size in ("tiny", "0.6b") for dtype in ("float32", "bfloat16") for batch in (1, 8)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": "0.6B"}, r"--sizes=0\.6B does not exist"),
        ({"dtype": "float16"}, r"--dtype=float16 does not exist; did you mean 'bfloat16'"),
        ({"tasks": "train"}, r"--tasks=train does not exist"),
        ({"models": "moepp"}, r"--models=moepp does not exist"),
        ({"routing": "learned"}, r"--routing=learned does not exist"),
        ({"new_tokens": 0}, r"--new-tokens=0 must be at least 1"),
        ({"rounds": 1, "steps": 1}, r"--rounds=1 and --steps=1 leave one time"),
    ],
)
def test_an_option_that_cannot_work_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(Options(**options))
