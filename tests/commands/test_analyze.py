"""``moepp analyze``: tables, numbers and summary of models on one text, and one line for what cannot be done."""

import errno
import io
import json
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from moepp import cli
from moepp.analyze import RoutingTable, Text, collect, experts_per_token, fingerprint, token_types
from moepp.commands.generate import open_saved
from moepp.commands.texts import held_out_fraction, read_texts
from moepp.data import load_python_library
from moepp.errors import DataError
from moepp.evaluate import VALIDATION_FRACTION

from ..saved import save_tiny
from ..train.tiny import recipe_of, write_recipe

pa = pytest.importorskip("pyarrow")  # where `make gpu` only collects
pq = pytest.importorskip("pyarrow.parquet")

PROSE = "the token takes the copy expert and the constant\n" * 12
CODE = "def main(args):\n    return 0\n" * 9


class Outcome(NamedTuple):
    code: int | None
    out: str
    err: str


def moepp(patch: pytest.MonkeyPatch, *arguments: object) -> Outcome:
    patch.setattr(sys, "argv", ["moepp", *map(str, arguments)])
    patch.setenv("COLUMNS", "120")
    out, err, code = io.StringIO(), io.StringIO(), None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code
    return Outcome(code, out.getvalue(), err.getvalue())  # pyright: ignore[reportArgumentType]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return partial(moepp, monkeypatch)


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time."""
    monkeypatch.setattr("moepp.commands.analyze.save_figures", lambda *_: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one tokenizer, and two texts."""
    folder = tmp_path_factory.mktemp("analyze")
    save_tiny(folder / "moepp")
    none = dict.fromkeys(("num_constant_experts", "num_copy_experts", "num_zero_experts"), 0)
    save_tiny(folder / "vanilla", gating_residual=False, **none)
    (folder / "prose.txt").write_text(PROSE)
    (folder / "code.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in (CODE, CODE[:30])))
    return folder


@pytest.fixture(scope="module")
def analysed(folder: Path) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        return moepp(patch, "analyze", folder / "moepp", folder / "vanilla", *data(folder), "--out", folder / "out")


def data(folder: Path) -> list[object]:
    return ["--data", folder / "prose.txt", "--data", folder / "code.jsonl", "--max-tokens", 400, "--window", 64]


def texts(folder: Path) -> list[Text]:
    prose, code = str(folder / "prose.txt"), str(folder / "code.jsonl")
    return [Text(prose, prose, PROSE), Text(f"{code} 1", code, CODE), Text(f"{code} 2", code, CODE[:30])]


def assert_one_line(outcome: Outcome, message: str) -> None:
    assert outcome.code == 2, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if not re.match(r"W\d{4} ", line)]
    assert re.search(f"^error: {message}", line), outcome.err


def test_each_models_table_is_saved_with_where_it_comes_from(analysed: Outcome, folder: Path) -> None:
    assert analysed.code == 0, analysed.err
    for name in ("moepp", "vanilla"):
        saved = RoutingTable.read(folder / "out" / f"{name}.parquet", fingerprint=fingerprint(folder / name))
        model, tokenizer = open_saved(folder / name, dtype="auto", device="cpu")
        expected = collect(model, tokenizer, texts(folder), max_tokens=400, window=64)
        np.testing.assert_array_equal(saved.expert, expected.expert)
        np.testing.assert_allclose(saved.loss, expected.loss, rtol=1e-5)
        assert (saved.documents, saved.vocabulary) == (expected.documents, expected.vocabulary)
        assert saved.num_tokens == 400
        assert saved.facts.model == name
        assert " analyze " in saved.facts.command
        assert saved.facts.text_hash == expected.facts.text_hash


def test_the_numbers_are_those_of_the_tables(analysed: Outcome, folder: Path) -> None:
    report = json.loads((folder / "out" / "analysis.json").read_text(encoding="utf-8"))
    assert f" analyze {folder}" in report["command"]  # before it, what ran these tests
    assert report["machine"]["processor"]
    assert {"moepp", "torch", "transformers"} <= report["versions"].keys()
    assert list(report["tables"]) == ["moepp", "vanilla"]
    table = RoutingTable.read(folder / "out" / "moepp.parquet")
    found = report["tables"]["moepp"]
    assert found["facts"]["fingerprint"] == fingerprint(folder / "moepp")
    by_source = experts_per_token(table, by="source")
    assert found["experts_per_token"]["ffn"]["source"]["mean"] == pytest.approx(by_source.mean.tolist())
    assert found["experts_per_token"]["ffn"]["source"]["groups"] == [
        str(folder / "prose.txt"),
        str(folder / "code.jsonl"),
    ]
    assert found["token_types"]["zero"]["text"] == list(token_types(table, "zero").text)
    assert found["loss"] == pytest.approx(float(np.nanmean(table.loss)))
    assert set(found["token_types"]) == {"ffn", "constant", "copy", "zero"}
    vanilla = report["tables"]["vanilla"]
    assert set(vanilla["token_types"]) == {"ffn"}
    assert vanilla["experts_per_token"]["ffn"]["all"]["mean"] == [2]
    assert vanilla["layer_correlation"]["ffn"] == [[None, None], [None, None]]


def test_the_summary_shows_a_column_for_each_model(analysed: Outcome, folder: Path) -> None:
    lines = [re.split(r"\s{2,}", line.strip()) for line in analysed.out.splitlines() if line.strip()]
    rows = {line[0]: line[1:] for line in lines}
    assert rows["moepp"] == ["vanilla"], "the head"
    table = RoutingTable.read(folder / "out" / "moepp.parquet")
    assert rows["tokens"] == ["400", "400"]
    assert rows["FFN experts per token"] == [f"{experts_per_token(table).mean[0]:.3f}", "2.000"]
    assert rows["seen at once"] == ["64", "64"]
    assert rows["aimed at"] == ["0.857", "2.000"]
    assert rows["zero experts per token"] == [f"{experts_per_token(table, 'zero').mean[0]:.3f}"]
    assert rows["loss, nats per token"][0] == f"{np.nanmean(table.loss):.3f}"
    assert rows["dropped"] == ["0.0 %", "0.0 %"]


def test_saved_tables_stand_for_a_run(analysed: Outcome, folder: Path, tmp_path: Path, run: Any) -> None:
    tables = [argument for name in ("moepp", "vanilla") for argument in ("--table", folder / "out" / f"{name}.parquet")]
    outcome = run("analyze", folder / "moepp", folder / "vanilla", *tables, "--out", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    old, new = (json.loads((at / "analysis.json").read_text()) for at in (folder / "out", tmp_path / "again"))
    assert new["tables"] == old["tables"]
    assert outcome.out.splitlines()[:-1] == analysed.out.splitlines()[:-1]


def test_an_analysis_may_be_repeated_in_its_folder(folder: Path, tmp_path: Path, run: Any) -> None:
    for tokens in (60, 90):
        outcome = run(
            "analyze", folder / "moepp", "--text", folder / "prose.txt", "--max-tokens", tokens, "--out", tmp_path
        )
        assert outcome.code == 0, outcome.err
    table = RoutingTable.read(tmp_path / "moepp.parquet")
    assert (table.num_tokens, table.sources, table.facts.window) == (90, ("prose.txt",), 90)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_models_of_one_name_are_told_apart_by_their_folders(folder: Path, tmp_path: Path, run: Any) -> None:
    for name in ("a", "b"):
        shutil.copytree(folder / "moepp", tmp_path / name / "moepp")
    models = (tmp_path / "a" / "moepp", tmp_path / "b" / "moepp")
    outcome = run("analyze", *models, "--text", folder / "prose.txt", "--max-tokens", 40, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert {path.stem for path in (tmp_path / "out").glob("*.parquet")} == {"a-moepp", "b-moepp"}


def test_without_a_text_it_is_the_librarys_held_out_part(
    folder: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (library := tmp_path / "library").mkdir()
    for name in ("graphlib", "netrc", "shelve", "filecmp", "textwrap", "heapq"):
        shutil.copy(Path(sysconfig.get_path("stdlib")) / f"{name}.py", library)
    small = partial(load_python_library, str(library))
    monkeypatch.setattr("moepp.data.sources.load_python_library", small)
    outcome = run("analyze", folder / "moepp", "--max-tokens", 200, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    table = RoutingTable.read(tmp_path / "out" / "moepp.parquet")
    assert table.sources == ("prose", "code")
    held_out = small(validation_fraction=VALIDATION_FRACTION).documents["code"]["validation"]
    text = "".join(table.vocabulary[token] for token in table.token[table.source == 1].tolist())
    assert held_out[0].startswith(text)
    assert np.bincount(table.source).tolist() == [100, 100]


def test_the_held_out_part_is_what_no_model_was_trained_on(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of("nowhere", tmp_path)
    recipe["data"] |= {"sources": [{"name": "code", "python_library": "code"}], "validation_fraction": 0.01}
    write_recipe(tmp_path / "recipe.yaml", recipe)
    assert held_out_fraction([folder / "moepp"]) == VALIDATION_FRACTION
    assert held_out_fraction([folder / "moepp", tmp_path]) == held_out_fraction([tmp_path]) == 0.01


def test_a_fingerprint_changes_with_weights_and_configuration(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder / "moepp", tmp_path / "copy")
    same = fingerprint(copied)
    assert same == fingerprint(folder / "moepp")
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    other = fingerprint(copied)
    config = copied / "config.json"
    config.write_text(config.read_text().replace('"tau": 0.75', '"tau": 0.5'))
    assert len({same, other, fingerprint(copied)}) == 3


@pytest.mark.usefixtures("without_figures")
def test_names_are_shown_as_they_are(folder: Path, tmp_path: Path, run: Any) -> None:
    model, text, out = tmp_path / "[red]m", tmp_path / "[a]:x:.txt", tmp_path / "brk[" / "x]"
    shutil.copytree(folder / "moepp", model)
    text.write_text(PROSE)
    outcome = run("analyze", model, "--text", text, "--max-tokens", 50, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "[red]m" in outcome.out
    assert outcome.out.splitlines()[-1] == f"written to {out}"
    assert RoutingTable.read(out / "[red]m.parquet").sources == ("[a]:x:.txt",)


@pytest.mark.usefixtures("without_figures")
def test_names_need_not_be_utf_8(folder: Path, tmp_path: Path, run: Any) -> None:
    text, out = tmp_path / "text\udcff", tmp_path / "out"
    try:
        text.write_text(PROSE)
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    arguments = ("--text", text, "--data", text, "--max-tokens", 50, "--out", out)
    outcome = run("analyze", folder / "moepp", *arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.out.encode()
    assert_one_line(
        run("analyze", folder / "moepp", "--out", f"{out}\udcff"), r"--out='\S+' is not UTF-8; choose another"
    )
    table = RoutingTable.read(out / "moepp.parquet")
    assert table.sources == ("text\\udcff", str(tmp_path / "text\\udcff"))
    assert "/text\\udcff'" in table.facts.command


@pytest.mark.usefixtures("without_figures")
def test_an_earlier_analysis_gives_way_but_no_table_that_is_read(folder: Path, tmp_path: Path, run: Any) -> None:
    arguments = ("--text", folder / "prose.txt", "--max-tokens", 50, "--out", tmp_path)
    for name in ("moepp", "vanilla"):
        assert run("analyze", folder / name, *arguments).code == 0
        assert [path.stem for path in tmp_path.glob("*.parquet")] == [name]
        assert list(json.loads((tmp_path / "analysis.json").read_text())["tables"]) == [name]
    table = (tmp_path / "vanilla.parquet").rename(tmp_path / "mine.parquet")
    assert run("analyze", folder / "vanilla", "--table", table, "--out", tmp_path).code == 0
    assert table.is_file()


@pytest.mark.usefixtures("without_figures")
def test_a_broken_recipe_is_no_matter_where_no_library_is_read(folder: Path, tmp_path: Path, run: Any) -> None:
    shutil.copytree(folder / "moepp", tmp_path / "m")
    (tmp_path / "m" / "recipe.yaml").write_text("model: [")
    arguments = ("--max-tokens", 50, "--out", tmp_path / "out")
    assert run("analyze", tmp_path / "m", "--text", folder / "prose.txt", *arguments).code == 0
    assert_one_line(run("analyze", tmp_path / "m", *arguments), r"recipe '\S+recipe\.yaml' is not YAML")


@pytest.mark.usefixtures("without_figures")
def test_models_of_different_tokenizers_are_not_compared_without_a_word(
    analysed: Outcome, folder: Path, tmp_path: Path, run: Any
) -> None:
    assert "tokenizers differ" not in analysed.out
    table = RoutingTable.read(folder / "out" / "vanilla.parquet")
    replace(table, facts=replace(table.facts, tokenizer_hash="other")).write(tmp_path / "other.parquet")
    tables = ("--table", folder / "out" / "moepp.parquet", "--table", tmp_path / "other.parquet")
    outcome = run("analyze", folder / "moepp", folder / "vanilla", *tables, "--out", tmp_path / "new")
    assert outcome.code == 0, outcome.err
    assert "the models' tokenizers differ: --max-tokens ends the text elsewhere" in outcome.out
    notice = '<p class="notice">The models&#39; tokenizers differ'
    assert [notice in (out / "report.html").read_text() for out in (tmp_path / "new", folder / "out")] == [True, False]


def test_no_more_text_is_read_than_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "x" * 40}) for _ in range(9)))
    (tmp_path / "b.txt").write_bytes(b"\xff")
    pattern = str(tmp_path / "*")
    assert read_texts(pattern, "--data", [], 100) == {pattern: ["x" * 40] * 3}
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8"):
        read_texts(pattern, "--data", [])


def own(name: str, content: str) -> Callable[[Path], object]:
    return lambda tmp: (tmp / name).write_text(content)


def own_pictures(tmp: Path) -> None:
    (tmp / "figures").mkdir()
    (tmp / "figures" / "mine.png").touch()


def other_model(kind: str) -> Callable[[Path], object]:
    return lambda tmp: (tmp / "config.json").write_text(json.dumps({"model_type": kind}))


def foreign_parquet(tmp: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp / "some.parquet")


def nothing(tmp: Path) -> None:
    pass


REFUSED: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "no such model": (nothing, ["{tmp}/nowhere"], r"model folder '\S+nowhere' does not exist; check the path"),
    "a dense model": (
        other_model("llama"),
        ["{tmp}"],
        r"\S+config\.json is of a model of type 'llama', without MoE\+\+ layers; give a folder with a moepp model$",
    ),
    "another mixture": (
        other_model("mixtral"),
        ["{tmp}"],
        r"\S+ is of a model of type 'mixtral', without MoE\+\+ layers",
    ),
    "one model twice": (
        nothing,
        ["{moepp}", "{moepp}"],
        r"MODEL: one folder is given twice, or the names cannot be told apart; give each once$",
    ),
    "a text shorter than a window": (
        lambda tmp: (tmp / "short.txt").write_text("return 0"),
        ["{moepp}", "--text", "{tmp}/short.txt", "--window", "64"],
        r"--window=64 is more than the \d tokens of the longest document; lower it, leave it out, or give more text$",
    ),
    "a window beyond the context": (
        nothing,
        ["{moepp}", "--text", "{prose}", "--window", "2000"],
        r"--window=2000 is outside \[1, 1024\], the model's context; lower it$",
    ),
    "no such text": (
        nothing,
        ["{moepp}", "--text", "{tmp}/no.txt"],
        r"--text\.files='\S+no\.txt' matches no file; check",
    ),
    "an empty text": (
        lambda tmp: (tmp / "empty.txt").write_text(""),
        ["{moepp}", "--text", "{tmp}/empty.txt"],
        r"--text\.files: \S+empty\.txt is empty; remove it or put text in it$",
    ),
    "no text but bytes": (
        lambda tmp: (tmp / "bytes.txt").write_bytes(b"a\xff"),
        ["{moepp}", "--text", "{tmp}/bytes.txt"],
        r"--text\.files: \S+bytes\.txt is not UTF-8 at byte offset 1; convert it$",
    ),
    "no such data": (
        nothing,
        ["{moepp}", "--data", "{tmp}/*.txt"],
        r"--data\.files='\S+' matches no file; check the path$",
    ),
    "no tokens": (nothing, ["{moepp}", "--max-tokens", "0"], r"--max-tokens=0 must be at least 1$"),
    "no batch": (nothing, ["{moepp}", "--batch-size", "0"], r"--batch-size=0 must be at least 1$"),
    "no device": (
        nothing,
        ["{moepp}", "--text", "{prose}", "--device", "warp"],
        r"device='warp' does not exist; use auto",
    ),
    "no dtype": (
        nothing,
        ["{moepp}", "--text", "{prose}", "--dtype", "int8"],
        r"dtype='int8' does not exist; choose one",
    ),
    "a table of another model": (
        nothing,
        ["{moepp}", "--table", "{out}/vanilla.parquet"],
        r"\S+vanilla\.parquet comes from another model, 'vanilla' \(fingerprint \w{12}, not fingerprint \w{12}\); give",
    ),
    "no table": (nothing, ["{moepp}", "--table", "{prose}"], r"\S+prose\.txt is damaged \(.*\); make the table again$"),
    "a table that is not there": (
        nothing,
        ["{moepp}", "--table", "{tmp}/no"],
        r"\S+no does not exist; give a file that",
    ),
    "a table too few": (
        nothing,
        ["{moepp}", "{vanilla}", "--table", "{out}/moepp.parquet"],
        r"--table is given 1 times for 2 models; give one for each, in their order$",
    ),
    "a table and a text": (
        nothing,
        ["{moepp}", "--table", "{out}/moepp.parquet", "--text", "{prose}"],
        r"--table stands for a run that is over; leave out --text, or --table$",
    ),
    "a file in the folder's place": (
        lambda tmp: (tmp / "new").write_text("mine"),
        ["{moepp}", "--text", "{prose}"],
        r"--out='\S+new' cannot be written: File exists; choose another folder$",
    ),
    "a file on the way": (
        nothing,
        ["{moepp}", "--text", "{prose}", "--out", "{prose}/out"],
        r"--out='\S+' cannot be written: Not a directory; choose another folder$",
    ),
    "a folder in use": (
        nothing,
        ["{moepp}", "--text", "{prose}", "--out", "{moepp}"],
        r"--out='\S+' is in use, it holds c",
    ),
    **{
        f"a folder with one's own {name}": (
            own(name, content),
            ["{moepp}", "--text", "{prose}", "--out", "{tmp}"],
            rf"--out='\S+' is in use, it holds {re.escape(name)}; choose a new folder$",
        )
        for name, content in {
            "report.html": "<title>mine</title>",
            "analysis.json": '["tables"]',
            "figures": "",
            "notes.incomplete": "",
        }.items()
    },
    "a folder with one's own pictures": (
        own_pictures,
        ["{moepp}", "--text", "{prose}", "--out", "{tmp}"],
        r"--out='\S+' is in use, it holds figures; choose a new folder$",
    ),
    "the root": (nothing, ["/", "--text", "{prose}"], r"(?!MODEL: one folder is given twice)"),
    "a table and options of a run": (
        nothing,
        [
            "{moepp}",
            "--table",
            "{out}/moepp.parquet",
            *["--max-tokens", "9", "--window", "8", "--batch-size", "1", "--dtype", "auto"],
        ],
        r"--table stands for a run that is over; leave out --max-tokens and --window and --batch-size and --dtype, or",
    ),
    "a table and a device": (
        nothing,
        ["{moepp}", "--table", "{out}/moepp.parquet", "--device", "cpu"],
        r"--table stands for a run that is over; leave out --device, or --table$",
    ),
    "a folder with other tables": (
        foreign_parquet,
        ["{moepp}", "--text", "{prose}", "--out", "{tmp}"],
        r"--out='\S+' is in use, it holds some\.parquet; choose a new folder$",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_one_line_and_nothing_is_lost(
    name: str, analysed: Outcome, folder: Path, tmp_path: Path, run: Any
) -> None:
    prepare, arguments, message = REFUSED[name]
    prepare(tmp_path)
    places = {"moepp": folder / "moepp", "vanilla": folder / "vanilla", "out": folder / "out", "tmp": tmp_path}
    places["prose"] = folder / "prose.txt"
    before = contents(folder, tmp_path)
    filled = [argument.format(**places) for argument in arguments]
    outcome = run("analyze", *filled, *([] if "--out" in filled else ["--out", tmp_path / "new"]))
    assert_one_line(outcome, message)
    assert contents(folder, tmp_path) == before


def contents(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_tables_of_different_texts_are_not_compared(folder: Path, tmp_path: Path, run: Any) -> None:
    for name, text in (("moepp", "prose.txt"), ("vanilla", "code.jsonl")):
        out = ("--max-tokens", 50, "--out", tmp_path / name)
        assert run("analyze", folder / name, "--text", folder / text, *out).code == 0
    tables = [argument for n in ("moepp", "vanilla") for argument in ("--table", tmp_path / n / f"{n}.parquet")]
    outcome = run("analyze", folder / "moepp", folder / "vanilla", *tables, "--out", tmp_path / "both")
    assert_one_line(outcome, r"--table: the tables of moepp and vanilla are of different texts; make both from one$")


@pytest.mark.parametrize("what", ["moepp.parquet", "analysis.json"])
def test_a_full_disk_is_one_line_and_the_old_analysis_stays(
    what: str, folder: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("analyze", folder / "moepp", "--text", folder / "prose.txt", "--max-tokens", 50, "--out", tmp_path)
    assert run(*arguments).code == 0
    before = contents(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = (pq.ParquetWriter, "write_table") if what.endswith("parquet") else (Path, "write_text")
    monkeypatch.setattr(*place, full)
    assert_one_line(run(*arguments), rf"\S+{what} cannot be written: No space left on device; choose another ")
    assert contents(tmp_path).keys() == before.keys()
    assert contents(tmp_path)[tmp_path / what] == before[tmp_path / what]
