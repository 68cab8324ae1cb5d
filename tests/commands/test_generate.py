"""``moepp generate``: the model's own continuation, transformers' sampling, and one line for every mistake."""

import io
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from moepp import cli
from moepp.data import load_tokenizer, train_tokenizer
from moepp.model import MoEPPForCausalLM, load_model

from ..saved import save_tiny

PROMPT = "def main("


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``moepp generate`` with these arguments, in this process; ``stdin`` is what is piped into it."""

    def run(*arguments: object, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "argv", ["moepp", "generate", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code: Any = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code or 0
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("generate") / "tiny", max_position_embeddings=160)


@pytest.fixture(scope="module")
def likeliest(folder: Path) -> str:
    """Twenty tokens after the prompt, from the model itself."""
    model, tokenizer = load_model(folder), load_tokenizer(str(folder))
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20)  # pyright: ignore
    return tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True) + "\n"


def test_the_continuation_is_the_models_and_the_prompt_is_not_repeated(run: Run, folder: Path, likeliest: str) -> None:
    outcome = run(folder, PROMPT, "--max-new-tokens", 20)
    assert (outcome.code, outcome.out) == (0, likeliest)


@pytest.mark.parametrize("options", [["--pack"], ["--dtype", "float32"], ["--device", "cpu"], ["--no-do-sample"]])
def test_options_that_change_no_word(options: list[str], run: Run, folder: Path, likeliest: str) -> None:
    assert run(folder, PROMPT, "--max-new-tokens", 20, *options).out == likeliest


@pytest.mark.parametrize("stdin", [PROMPT, PROMPT + "\n"], ids=["printf", "echo"])
def test_all_of_standard_input_is_the_prompt(stdin: str, run: Run, folder: Path, likeliest: str) -> None:
    assert run(folder, "--stdin", "--max-new-tokens", 20, stdin=stdin.encode()).out == likeliest
    assert run(folder, "--stdin", "--max-new-tokens", 20, stdin=f"a\n{stdin}".encode()).out != likeliest


def test_draws_repeat_by_their_seed(run: Run, folder: Path, likeliest: str) -> None:
    drawn = [
        run(folder, PROMPT, "--max-new-tokens", 20, "--do-sample", "--temperature", 1.5, "--seed", seed).out
        for seed in (2**40, 2**40, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert likeliest not in drawn


def test_top_k_is_of_tokens_and_not_of_experts(run: Run, folder: Path, likeliest: str) -> None:
    """One token to draw from is the likeliest; one expert of two would be another model."""
    assert load_model(folder).config.top_k == 2
    sampled = run(folder, PROMPT, "--max-new-tokens", 20, "--do-sample", "--temperature", 1.5, "--top-k", 1)
    assert sampled.out == likeliest


@pytest.mark.parametrize("option", [("--top-p", 1e-6), ("--min-p", 1)], ids=str)
def test_other_ways_to_keep_only_the_likeliest(option: tuple, run: Run, folder: Path, likeliest: str) -> None:
    assert run(folder, PROMPT, "--max-new-tokens", 20, "--do-sample", "--temperature", 1.5, *option).out == likeliest


def test_a_repetition_penalty_changes_the_continuation(run: Run, folder: Path, likeliest: str) -> None:
    assert run(folder, PROMPT, "--max-new-tokens", 20, "--repetition-penalty", 1000).out != likeliest


def settings_of(run: Run, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[list[int], dict[str, Any]]:
    """The prompt's ids and the settings that the model is given."""
    seen: Any = {}
    monkeypatch.setattr(MoEPPForCausalLM, "generate", lambda self, ids, **kwargs: seen.update(kwargs, ids=ids))
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    return seen.pop("ids")[0].tolist(), seen


def test_a_chat_is_a_users_message_in_the_template(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(str(folder))
    ids, _ = settings_of(run, monkeypatch, folder, PROMPT, "--chat")
    assert tokenizer.decode(ids) == f"user: {PROMPT}\nassistant:"
    tokenizer.chat_template = "[{{ messages[0].content }}]"
    shutil.copytree(folder, tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    ids, _ = settings_of(run, monkeypatch, tmp_path / "own", PROMPT, "--chat")
    assert tokenizer.decode(ids) == f"[{PROMPT}]"


def test_as_many_tokens_as_there_is_room_for(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, settings = settings_of(run, monkeypatch, folder, PROMPT)
    assert settings["max_new_tokens"] == 128
    ids, settings = settings_of(run, monkeypatch, folder, PROMPT + "a" * 100)
    assert settings["max_new_tokens"] == 160 - len(ids) < 128
    assert "do_sample" not in settings


def test_an_empty_prompt_begins_a_text(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(run, monkeypatch, folder, "")[0] == [load_tokenizer(str(folder)).bos_token_id]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], r"give a PROMPT, or --stdin to read one from standard input, and not both$"),
        (["{folder}", "a", "--stdin"], r"give a PROMPT, or --stdin .* and not both$"),
        (["nowhere", "a"], r"model folder 'nowhere' does not exist; check the path, "),
        (["{folder}/..", "a"], r"\S+ holds no config\.json, so no model; did you mean \S+/tiny\?$"),
        (["{folder}", "a" * 500], r"the prompt has \d+ tokens and the model a context of 160, in which at least one "),
        (["{folder}", "a", "--max-new-tokens", "160"], r"--max-new-tokens=160 exceeds the 159 tokens left after the "),
        (["{folder}", "a", "--max-new-tokens", "0"], r"--max-new-tokens=0 must be an integer >= 1$"),
        (
            ["{folder}", "a", "--do-sample", "--temperature", "0"],
            r"--temperature=0\.0 must be a number in \[0\.001, 1000\]$",
        ),
        (["{folder}", "a", "--do-sample", "--top-p", "nan"], r"--top-p=nan must be a number in \(0, 1\]$"),
        (["{folder}", "a", "--do-sample", "--top-k", "-1"], r"--top-k=-1 must be an integer >= 0"),
        (["{folder}", "a", "--min-p", "2"], r"--min-p=2\.0 must be a number in \[0, 1\]$"),
        (["{folder}", "a", "--repetition-penalty", "0"], r"--repetition-penalty=0\.0 must be a number in \["),
        (["{folder}", "a", "--seed", "-1"], r"--seed=-1 must be an integer >= 0"),
        (["{folder}", "a", "--top-k", "5"], r"--top-k=5 has no effect without --do-sample; add it$"),
        (["{folder}", "a", "--dtype", "float61"], r"dtype='float61' does not exist; did you mean 'float64'\?$"),
        (["{folder}", "a", "--device", "abacus"], r"device='abacus' does not exist; use auto, cpu or cuda$"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, run: Run, folder: Path) -> None:
    outcome = run(*(argument.format(folder=folder) for argument in arguments))
    assert outcome.code == 2
    assert re.fullmatch(
        rf"error: {message}.*\n" if not message.endswith("$") else rf"error: {message[:-1]}\n", outcome.err
    )
    assert outcome.out == ""


def test_text_that_is_not_utf8_is_one_line(run: Run, folder: Path) -> None:
    outcome = run(folder, "--stdin", stdin=b"caf\xe9")
    assert (outcome.code, outcome.err) == (2, "error: --stdin: the text is not UTF-8 at byte 3; convert it\n")


def test_a_tokenizer_of_another_model_is_one_line(run: Run, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    train_tokenizer([f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"] * 3, 320).save_pretrained(
        tmp_path / "other"
    )
    outcome = run(tmp_path / "other", "a")
    assert outcome.code == 2
    assert re.fullmatch(
        r"error: tokenizer='\S+other' has 3\d\d entries, more than the 290 rows of the model's embedding; use the "
        r"tokenizer that the model was trained with\n",
        outcome.err,
    )


def test_ctrl_c_leaves_what_was_said_and_ends_with_130(
    run: Run, folder: Path, likeliest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0
    forward = MoEPPForCausalLM.forward

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes > 10:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(MoEPPForCausalLM, "forward", interrupted)
    outcome = run(folder, PROMPT, "--max-new-tokens", 20)
    assert (outcome.code, outcome.err) == (130, "")
    assert outcome.out.endswith("\n")
    assert likeliest.startswith(outcome.out[:-2])
    assert len(outcome.out) > 5


def test_a_closed_pipe_is_no_traceback(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    outcome = run(folder, PROMPT, "--max-new-tokens", 20)
    assert outcome.code == 1
    assert outcome.err == ""
