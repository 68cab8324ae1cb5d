"""``moepp eval``: the tables, the JSON, the exit codes, and the harness's own command on the same folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from moepp import cli
from moepp.commands import eval as eval_command
from moepp.commands import eval_report
from moepp.data import DataSpec, load_corpus
from moepp.evaluate import VALIDATION_FRACTION, Evaluation, TextLoss, items_hash

from .test_scores import score


class Outcome(NamedTuple):
    code: int | None
    out: str
    err: str


@pytest.fixture
def moepp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["moepp", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "120")
        try:
            cli.main()
        except SystemExit as exit_:
            return Outcome(exit_.code, *capsys.readouterr())  # pyright: ignore[reportArgumentType]
        return Outcome(None, *capsys.readouterr())

    return run


def test_scores_are_printed_and_written(moepp, saved, tasks, tmp_path) -> None:
    out = tmp_path / "scores.json"
    outcome = moepp("eval", saved, "--tasks", "local_choice", "--include-path", tasks, "--json", out)
    assert outcome.code == 0, outcome.err
    report = json.loads(out.read_text(encoding="utf-8"))
    (task,) = report["tasks"]
    assert report["skipped"] == []
    assert report["average"] == task["score"]
    assert report["average_standard_error"] == task["standard_error"]
    assert (task["task"], task["items"], task["shots"], task["chance"]) == ("local_choice", 5, 0, 0.25)
    assert 0 < task["ffn_per_token"] < 2
    assert {"acc,none", "acc_norm,none", "acc_stderr,none"} <= task["metrics"].keys()
    assert {"moepp", "torch", "transformers", "lm_eval"} <= report["versions"].keys()
    assert report["command"].startswith(f"moepp eval {saved}")
    assert report["model"] == str(saved)
    assert report["seed"]["fewshot"] == 1234
    rows = {line.split("  ")[0].strip(): line.split() for line in outcome.out.splitlines() if line.strip()}
    assert rows["score"][1].rstrip("*") == f"{100 * task['score']:.1f}"
    assert rows["FFN experts per token"][-1] == f"{task['ffn_per_token']:.3f}"


def test_a_skipped_task_is_named_and_shows_in_the_exit_code(moepp, saved, tasks, tmp_path) -> None:
    out = tmp_path / "scores.json"
    outcome = moepp("eval", saved, "--tasks", "local_all", "--include-path", tasks, "--json", out)
    assert outcome.code == 3
    assert "skipped local_nowhere: " in outcome.out
    report = json.loads(out.read_text(encoding="utf-8"))
    assert [task["task"] for task in report["tasks"]] == ["local_choice"]
    assert [skipped["task"] for skipped in report["skipped"]] == ["local_nowhere"]
    assert report["skipped"][0]["reason"]


def test_without_any_data_it_is_an_error_and_the_reasons_are_kept(moepp, saved, tmp_path) -> None:
    out = tmp_path / "scores.json"
    outcome = moepp("eval", saved, "--tasks", "paper", "--json", out)
    assert outcome.code == 2
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert "none of the tasks could be evaluated (SciQ, PIQA, WinoGrande, ARC-E, ARC-C, HellaSwag, LogiQA" in line
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["tasks"] == []
    assert report["average"] is None
    assert len(report["skipped"]) == 11


def test_text_is_scored_by_source(moepp, saved, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("The cow eats grass all day long.\n" * 5, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "The owl hunts."}\n{"text": "The ant."}\n', encoding="utf-8")
    out = tmp_path / "loss.json"
    for pattern, documents in (("a.txt", 1), ("b.jsonl", 2), ("*", 3)):
        outcome = moepp("eval", saved, "--perplexity", tmp_path / pattern, "--stride", 4, "--json", out)
        assert outcome.code == 0, outcome.err
        (found,) = json.loads(out.read_text(encoding="utf-8"))["perplexity"].values()
        assert found["documents"] == documents
        assert found["loss"] == pytest.approx(found["nats"] / found["tokens"])
        assert f"{found['bits_per_byte']:.4f}" in outcome.out
        out.unlink()


def test_parquet_files_are_read(moepp, saved, tmp_path) -> None:
    import datasets

    texts = {"text": ["The owl hunts mice.", "The ant."]}
    datasets.Dataset.from_dict(texts).to_parquet(tmp_path / "texts.parquet")
    out = tmp_path / "loss.json"
    outcome = moepp("eval", saved, "--perplexity", tmp_path / "texts.parquet", "--json", out)
    assert outcome.code == 0, outcome.err
    (found,) = json.loads(out.read_text(encoding="utf-8"))["perplexity"].values()
    assert (found["documents"], found["bytes"]) == (2, len("".join(texts["text"])))


def test_the_held_out_library_is_scored_by_source_and_as_a_whole(moepp, saved, library, tmp_path) -> None:
    out = tmp_path / "loss.json"
    outcome = moepp("eval", saved, "--perplexity", "stdlib", "--json", out)
    assert outcome.code == 0, outcome.err
    found = json.loads(out.read_text(encoding="utf-8"))["perplexity"]
    held_out = {s.name: s.validation for s in load_corpus(DataSpec(validation_fraction=VALIDATION_FRACTION)).sources}
    assert list(found) == [*held_out, "all"]
    for name, documents in held_out.items():
        assert found[name]["bytes"] == len("".join(documents).encode())
    for quantity in ("documents", "tokens", "bytes", "nats"):
        assert found["all"][quantity] == pytest.approx(sum(found[name][quantity] for name in held_out))


def test_the_library_is_asked_about(moepp, saved, library, tmp_path, monkeypatch) -> None:
    from moepp.evaluate.language_model import RoutedLM

    monkeypatch.setattr(RoutedLM, "max_length", 400)
    out = tmp_path / "scores.json"
    outcome = moepp("eval", saved, "--tasks", "stdlib", "--limit", 2, "--json", out)
    assert outcome.code == 0, outcome.err
    report = json.loads(out.read_text(encoding="utf-8"))
    assert [task["label"] for task in report["tasks"]] == ["summary", "line", "name", "cloze"]
    assert all(set(task["baselines"]) == {"unigram", "shuffled contexts"} for task in report["tasks"])
    assert report["items"]["stdlib_line"] == items_hash("line", VALIDATION_FRACTION)


@pytest.mark.parametrize(
    ("data", "fraction"),
    [
        (None, VALIDATION_FRACTION),
        ({"validation_fraction": 0.01}, 0.01),
        ({"validation_fraction": 0.3}, VALIDATION_FRACTION),
        ({"validation_fraction": 0.01, "sources": [{"name": "a", "files": ["a.txt"]}]}, VALIDATION_FRACTION),
    ],
)
def test_only_what_the_models_own_run_held_out_is_asked_about(
    moepp, saved, tmp_path, monkeypatch, data: dict[str, Any] | None, fraction: float
) -> None:
    """Without a recipe, or trained on something else, the default share is."""
    folder = shutil.copytree(saved, tmp_path / "model")
    if data is not None:
        recipe = {"output_dir": str(folder), "data": data, "training": {"max_steps": 1}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        eval_command, "evaluate_tasks", lambda *_, **options: asked.update(options) or Evaluation([], [])
    )
    assert moepp("eval", folder, "--tasks", "stdlib").code == 0
    assert asked["validation_fraction"] == fraction


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate on; give --tasks or --perplexity"),
        (
            ["--tasks", "local_choise", "--include-path", "{tasks}"],
            "did you mean 'local_choice'",
        ),
        (["--tasks", "local_choice", "--limit", "0"], "--limit=0 must be at least 1"),
        (["--tasks", "local_choice", "--batch-size", "0"], "--batch-size=0 must be at least 1"),
        (["--tasks", "stdlib", "--json", "{tmp}/no/such.json"], "cannot be written: No such file"),
        (["--perplexity", "{tmp}/nothing*"], "matches no file"),
        (["--perplexity", "{tmp}", "--dtype", "float31"], "dtype='float31' does not exist"),
    ],
)
def test_a_mistake_is_one_line(moepp, saved, tasks, tmp_path, arguments: list[str], message: str) -> None:
    filled = [argument.format(tmp=tmp_path, tasks=tasks) for argument in arguments]
    outcome = moepp("eval", saved, *filled)
    assert outcome.code == 2
    assert [line for line in outcome.err.splitlines() if message in line and line.startswith("error: ")], outcome.err


def test_a_folder_without_a_model_is_one_line(moepp, tmp_path) -> None:
    outcome = moepp("eval", tmp_path, "--tasks", "stdlib")
    assert outcome.code == 2
    assert "holds no config.json" in outcome.err


@pytest.mark.parametrize("width", [60, 100, 160])
def test_a_table_fits_its_width_whatever_the_number_of_tasks(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    labels = ["SciQ", "PIQA", "WinoGrande", "ARC-E", "ARC-C", "HellaSwag", "LogiQA", "BoolQ", "LAMBADA", "NQ", "MMLU"]
    scores = [score(task=label, label=label, published=50.0, score=0.2 + n / 20) for n, label in enumerate(labels)]
    eval_report.print_scores("runs/demo/moepp", Evaluation(scores, []), Console(width=width))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in lines)
    heads = [word for line in lines for word in line.split() if word in labels]
    assert heads == labels
    assert sum(line.split()[0] == "score" for line in lines if line.split()) == {60: 4, 100: 2, 160: 1}[width]
    assert any("20.0*" in line for line in lines), "near chance is marked"


def test_the_losses_of_text_fit_80_columns_and_names_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    loss = TextLoss(documents=12_345, tokens=45_057_312, bytes=999 * 2**20, nats=215_238_700.0)
    eval_report.print_text_losses(dict.fromkeys(("prose", "code", "tests", "all"), loss), Console(width=80))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines[2:]] == ["prose", "code", "tests", "all"]
    assert all(f"{loss.bits_per_byte:.4f}" in line for line in lines[2:])


def test_the_harness_own_command_gives_the_same_numbers(moepp, saved, tasks, tmp_path) -> None:
    ours = tmp_path / "ours.json"
    moepp(
        "eval",
        saved,
        "--tasks",
        "local_choice,local_answer,local_shots,local_text",
        "--include-path",
        tasks,
        "--json",
        ours,
        "--batch-size",
        4,
    )
    found = json.loads(ours.read_text(encoding="utf-8"))["tasks"]
    model = f"pretrained={saved},trust_remote_code=True"
    program = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model, "--device", "cpu"]
    options = [
        "--tasks",
        "local_choice,local_answer,local_shots,local_text",
        "--include_path",
        str(tasks),
        "--batch_size",
        "4",
    ]
    done = subprocess.run(
        [*program, *options, "--output_path", str(tmp_path / "theirs")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = Path(tmp_path / "theirs").rglob("*.json")
    theirs = json.loads(written.read_text(encoding="utf-8"))["results"]
    for task in found:
        for name, value in task["metrics"].items():
            assert value == pytest.approx(theirs[task["task"]][name], nan_ok=True), name
