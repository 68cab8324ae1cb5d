"""The command line: help, the info table, and one line with exit code 2 for every mistake a user can make."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from moepp import cli
from moepp.commands.train import exit_if_interrupted
from moepp.model import PRESETS, MoEPPConfig, account, preset

from .train.tiny import recipe_of, write_recipe, write_texts


class Outcome(NamedTuple):
    code: int | None
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``moepp`` with these arguments, in this process."""

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["moepp", *map(str, arguments)])
        code: Any = None
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    return write_recipe(folder / "recipe.yaml", recipe_of(write_texts(folder / "texts"), folder / "run"))


def assert_one_line(outcome: Outcome, message: str) -> None:
    assert outcome.code == 2, outcome.err
    # torch logs in this form while transformers imports torchao, which it does where that is installed.
    (line,) = [line for line in outcome.err.splitlines() if not re.match(r"W\d{4} ", line)]
    assert re.search(rf"^error: {message}", line), outcome.err


# Help


def test_help_lists_every_command(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert {"demo", "train", "info"} <= names
    for name in names:
        assert re.search(rf"^\W+{name}\s+\w", outcome.out, re.MULTILINE), name


@pytest.mark.parametrize("command", [c.name or c.callback.__name__ for c in cli.app.registered_commands])
def test_help_of_a_command_says_what_it_does(run: Run, command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.code == 0
    described = next(c for c in cli.app.registered_commands if (c.name or c.callback.__name__) == command)
    assert (described.callback.__doc__ or "").split(".")[0][:40] in outcome.out
    assert re.search(rf"Usage: .*moepp {command} ", outcome.out)


def test_no_command_shows_the_help(run: Run) -> None:
    assert run().out.strip() == run("--help").out.strip()


# info


def row(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.strip("│ ").startswith(name))
    return [cell.strip() for cell in line.strip("│ ").split("│")]


@pytest.mark.parametrize("name", PRESETS)
def test_info_prints_the_accounting_of_every_preset(run: Run, name: str) -> None:
    outcome = run("info", name)
    assert outcome.code == 0
    counts = account(preset(name))
    assert row(outcome.out, "parameters")[2] == f"{counts.total_parameters:,}"
    assert row(outcome.out, "expert FLOPs over vanilla's")[1] == f"{counts.ffn_share:.1%}"
    assert row(outcome.out, "bound on the speed-up")[1] == f"{counts.speedup_bound:.2f}×"


@pytest.mark.parametrize("override", ["tau=0.25", "model.tau=0.25", "tau=2.5e-1"])
def test_info_takes_overrides(run: Run, override: str) -> None:
    outcome = run("info", "moepp-0.6b-8+4", override)
    assert row(outcome.out, "expert FLOPs over vanilla's")[1] == "33.3%"  # Table 1
    assert row(run("info", "moepp-0.6b-8+4").out, "expert FLOPs over vanilla's")[1] == "60.0%"


def test_info_counts_for_the_context_and_bytes_asked_for(run: Run) -> None:
    counts = account(preset("debug"), context=100, bytes_per_weight=4)
    outcome = run("info", "debug", "--context", "100", "--bytes-per-weight", "4")
    assert "over 100 tokens of context" in outcome.out
    assert row(outcome.out, "weights")[1] == f"{counts.weight_bytes / 2**20:.2f} MiB"


def test_info_reads_a_saved_models_folder(run: Run, tmp_path: Path) -> None:
    preset("debug", num_ffn_experts=5).save_pretrained(tmp_path)
    assert row(run("info", tmp_path).out, "experts per layer")[1] == "9"
    assert row(run("info", tmp_path, "num_ffn_experts=6").out, "experts per layer")[1] == "10"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["moepp-0.6b"], r"model\.preset='moepp-0\.6b' does not exist; did you mean 'moepp-0\.6b-8\+4'\?$"),
        (["nowhere"], r"model\.preset='nowhere' does not exist; choose one of debug, "),
        (["debug", "tau"], r"override 'tau' is not of the form key=value, such as tau=0\.5$"),
        (["debug", "tau=["], r"override 'tau=\[' is not YAML: "),
        (["debug", "tua=1"], r"model\.tua is not a field; did you mean 'tau'\?$"),
        (["debug", "tau=abc"], r"model\.tau='abc' must be of type float$"),
        (["debug", "hidden_size=abc"], r"model\.hidden_size='abc' must be of type int$"),
        (["debug", "hidden_size=1.5"], r"model\.hidden_size=1\.5 must be of type int$"),
        (["debug", "top_k=9"], r"moe\.top_k=9 exceeds the 8 experts of this layer; "),
        (["debug", "num_attention_heads=7"], r"model\.num_attention_heads=7 does not divide model\.hidden_size=64; "),
        (["debug", "--context", "0"], r"--context=0 must be at least 1$"),
        (["debug", "--bytes-per-weight", "0"], r"--bytes-per-weight=0 must be at least 1$"),
    ],
)
def test_info_refuses_in_one_line(run: Run, arguments: list[str], message: str) -> None:
    assert_one_line(run("info", *arguments), message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", r"\S+config\.json is not JSON: .*; save the model again$"),
        (b"\xff", r"\S+config\.json is not JSON: .*; save the model again$"),
        (
            "[]",
            r"\S+config\.json is of a model of type None, without MoE\+\+ layers; give a folder with a moepp model$",
        ),
        (
            '{"model_type": "llama"}',
            r"\S+config\.json is of a model of type 'llama', without MoE\+\+ layers; give a folder with a moepp model$",
        ),
        ('{"model_type": "moepp", "top_k": "a"}', r"\S+config\.json\.top_k='a' must be of type int$"),
        ('{"model_type": "moepp", "top_k": 99}', r"moe\.top_k=99 exceeds the 12 experts"),
    ],
)
def test_info_refuses_a_folder_of_something_else(run: Run, tmp_path: Path, config: str | bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())
    assert_one_line(run("info", tmp_path), message)


# train


def test_train_ends_with_the_data_and_where_the_model_is(run: Run, recipe: Path, tmp_path: Path) -> None:
    """One whole run, into a folder whose name rich would swallow as markup."""
    out = tmp_path / "[x]"
    outcome = run("train", recipe, "training.max_steps=2", "training.logging_steps=2", f"output_dir={out}")
    assert outcome.code is None or outcome.code == 0, outcome.err
    assert f"saved to {out}" in outcome.out
    assert re.search(r"prose\W+validation\W+0\.75", outcome.out)
    assert MoEPPConfig.from_pretrained(out).num_ffn_experts == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.tua=1"], r"model\.tua is not a field; did you mean 'tau'\?$"),
        (["modle.tau=1"], r"modle is not a recipe key; did you mean 'model'\?$"),
        (["model.tau"], r"override 'model\.tau' is not of the form key=value, such as model\.tau=0\.5$"),
        (["model.preset=moepp-1b"], r"model\.preset='moepp-1b' does not exist; did you mean 'moepp-1b-16\+4'\?$"),
        (["model.num_ffn_experts=0"], r"moe\.num_ffn_experts=0 must be an integer >= 1$"),
        (["model.top_k=20"], r"moe\.top_k=20 exceeds the 7 experts of this layer; "),
        (["model.vocab_size=299"], r"model\.vocab_size=299 is smaller than the tokenizer's 300; raise it, "),
        (
            ["data.sequence_length=64"],
            r"data\.sequence_length=64 exceeds model\.max_position_embeddings=32; lower one or raise the other$",
        ),
        (["training.optim=none"], r"training: none is not a valid OptimizerNames, please select one of "),
        (
            ["training.eval_strategy=steps", "data.validation_fraction=0"],
            r"training\.eval_strategy=steps has no text to validate on; raise data\.validation_fraction or name a ",
        ),
        (
            ["training.per_device_train_batch_size=1000"],
            r"data: \d+ samples of data\.sequence_length=32 are less than the 1000 of one step; add text, or lower ",
        ),
        (["data.sources[1].files=[nowhere.txt]"], r"data\.sources\[1\]\.files='nowhere\.txt' matches no file; "),
        (["tokenizer.path=nowhere/at/all"], r"tokenizer='nowhere/at/all' cannot be loaded: "),
        (["tokenizer.vocab_size=10"], r"tokenizer\.vocab_size=10 has no room for 256 bytes and 2 special tokens; "),
        (["--resume"], r"output_dir='\S+run' has no checkpoint to resume from; start without --resume$"),
        (["--resume", "--resume-from", "x"], r"--resume and --resume-from say two things; give one$"),
        (["--resume-from", "x"], r"checkpoint x does not exist; check the path$"),
    ],
)
def test_train_refuses_in_one_line_and_leaves_no_folder(
    run: Run, recipe: Path, overrides: list[str], message: str
) -> None:
    assert_one_line(run("train", recipe, *overrides), message)
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"data\.sources\[0\]\.files: \S+text\.txt is empty; remove it or put text in it$"),
        (b"caf\xe9", r"data\.sources\[0\]\.files: \S+text\.txt is not UTF-8 at byte offset 3; convert it$"),
        (b"short", r"data source 'a': its training part has \d+ tokens and one block needs 32; add text, "),
    ],
)
def test_train_refuses_text_that_cannot_be_used(
    run: Run, recipe: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    override = f"data.sources=[{{name: a, files: ['{text}']}}]"
    assert_one_line(run("train", recipe, override, "data.validation_fraction=0"), message)


def test_train_refuses_a_missing_recipe_and_a_folder_in_use(run: Run, recipe: Path, tmp_path: Path) -> None:
    assert_one_line(run("train", tmp_path / "no.yaml"), r"recipe '\S+no\.yaml' does not exist; check the path$")
    (tmp_path / "mine.txt").write_text("precious")
    used = rf"output_dir='{tmp_path}' is already in use; choose another, remove it, or continue its run with --resume$"
    assert_one_line(run("train", recipe, f"output_dir={tmp_path}"), used)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_debug_shows_the_traceback_and_the_same_line(run: Run, recipe: Path) -> None:
    plain, debug = (run(*option, "train", recipe, "model.tua=1") for option in ([], ["--debug"]))
    assert debug.code == 2
    assert "Traceback (most recent call last)" in debug.err
    assert "check_section" in debug.err
    assert debug.err.endswith(plain.err)
    assert "Traceback" not in run("train", recipe, "model.tua=1").err  # it holds for one call


def test_ctrl_c_before_training_ends_quietly_with_130(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While training, it saves: see tests/train/test_drills.py."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moepp.train.prepared.load_corpus", interrupted)
    outcome = run("train", recipe)
    assert (outcome.code, outcome.err) == (130, "")


def test_a_process_of_its_own_prints_one_line_too(recipe: Path) -> None:
    """No library adds a warning of its own, and nothing is cut to the width of a terminal."""
    override = "training.per_device_train_batch_size=1000"
    process = subprocess.run(
        [sys.executable, "-m", "moepp", "train", recipe, override],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "40"},
        check=False,
    )
    assert_one_line(Outcome(process.returncode, process.stdout, process.stderr), r"data: \d+ samples of ")
    assert len(process.stderr) > 120


def test_the_printed_resume_command_survives_brackets(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rich reads [b.txt] as markup, which would drop it from the command."""
    command = ["moepp", "train", str(recipe), "data.sources=[{name: a, files: [b.txt]}]", "--resume"]
    with pytest.raises(SystemExit) as exit_:
        exit_if_interrupted(Console(width=20), SimpleNamespace(signal=signal.SIGINT), command)  # pyright: ignore[reportArgumentType]
    assert exit_.value.code == 130
    out = capsys.readouterr().out
    assert shlex.split(out.partition("to go on: ")[2]) == command
