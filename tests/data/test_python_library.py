import ast
import inspect
import logging
import textwrap

import pytest

from moepp.data import DataSpec, load_corpus
from moepp.data.python_library import _documented, _group, _without_docstrings, load_python_library


def without_docstrings(source: str) -> str:
    return _without_docstrings(source, list(_documented(ast.parse(source))))


def test_every_source_holds_out_some_percent(library):
    for part, splits in library.documents.items():
        sizes = {split: sum(len(text.encode()) for text in texts) for split, texts in splits.items()}
        share = sizes["validation"] / sum(sizes.values())
        print(part, {split: len(texts) for split, texts in splits.items()}, sizes, f"{share:.3f}")
        assert 0.02 < share < 0.10, part


def test_no_document_is_on_both_sides(library):
    for splits in library.documents.values():
        assert not set(splits["train"]) & set(splits["validation"])
    every = [text for splits in library.documents.values() for texts in splits.values() for text in texts]
    assert len(every) == len(set(every))


def test_no_docstring_is_on_both_sides(library):
    prose = library.documents["prose"]
    training = "\n\n".join(prose["train"])
    assert not [text for text in prose["validation"] if text.strip() in training]


def test_docstrings_are_not_in_code_or_tests(library):
    """Line by line, over the whole library. A few lines are there twice: comments and tests that quote a docstring."""

    def lines(part):
        return {
            line.strip() for texts in library.documents[part].values() for text in texts for line in text.split("\n")
        }

    prose = {line for line in lines("prose") if len(line) > 40}
    quoted = prose & (lines("code") | lines("tests"))
    assert len(prose) > 10_000
    assert len(quoted) < 0.002 * len(prose), sorted(quoted)


def test_docstrings_are_in_prose(library):
    prose = "\n".join(text for texts in library.documents["prose"].values() for text in texts)
    assert inspect.getdoc(textwrap.dedent) in prose
    assert 'The "assert" statement' in prose  # pydoc's topics


def test_code_still_parses(library):
    for part in ("code", "tests"):
        for text in library.documents[part]["train"][::40] + library.documents[part]["validation"][::8]:
            assert not list(_documented(ast.parse(text)))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Module."""\nx = 1\n', "x = 1\n"),
        ('"""Module."""\n', ""),
        ('def f():\n    """Doc."""\n', "def f():\n    pass\n"),
        ('def f():\n    """Doc.\n\n    More.\n    """\n    return 1  # why\n', "def f():\n    return 1  # why\n"),
        ('class A: "doc"\n', "class A: pass\n"),
        ('class A:\n    "doc"; x = 1\n', "class A:\n    pass; x = 1\n"),
        ('def f():\n    "é"  # noqa\n    return "ü"\n', 'def f():\n    pass  # noqa\n    return "ü"\n'),
        (
            'if x:\n    def f():\n        "doc"\nelse:\n    class B:\n        "doc"\n        y = "kept"\n',
            'if x:\n    def f():\n        pass\nelse:\n    class B:\n        y = "kept"\n',
        ),
        ('async def f():\n    """\x0c a\u2028b"""\n    await g\n', "async def f():\n    await g\n"),
    ],
)
def test_docstrings_are_cut_out(source, expected):
    assert without_docstrings(source) == expected


@pytest.mark.parametrize(
    ("module", "group"),
    [
        ("json.decoder", "json"),
        ("_json", "json"),
        ("test.test_json.test_decode", "json"),
        ("test.test_xml_etree", "xml"),
        ("_pydecimal", "decimal"),
        ("_py_abc", "abc"),
        ("pyclbr", "pyclbr"),
        ("test.support.os_helper", "support"),
        ("unittest.test.test_case", "unittest"),
        ("__future__", "future"),
    ],
)
def test_a_test_goes_with_what_it_tests(module, group):
    assert _group(tuple(module.split("."))) == group


def make_library(folder, modules):
    for name, text in modules.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return load_python_library(str(folder), 0.5)


def test_what_is_read_and_what_is_not(tmp_path):
    library = make_library(
        tmp_path,
        {
            "alpha.py": '"""About alpha."""\nx = 1\n',
            "broken.py": "print 'two'\n",
            "null.py": "x = '\0'\n",
            "site-packages/other.py": "y = 1\n",
            "__pycache__/cached.py": "z = 1\n",
            "test/test_alpha.py": '"""Never shown."""\nassert True\n',
        },
    )
    texts = {part: splits["train"] + splits["validation"] for part, splits in library.documents.items()}
    assert texts == {"prose": ["About alpha.\n"], "code": ["x = 1\n"], "tests": ["assert True\n"]}
    assert (library.modules, library.skipped) == (2, 2)
    sides = {split for splits in library.documents.values() for split, found in splits.items() if found}
    assert len(sides) == 1, "alpha, its docstring and its test are one group"


def test_a_library_without_tests_mixes_the_rest(monkeypatch, caplog, tmp_path):
    modules = {f"m{n}x.py": f'"""About {n}."""\nx = {n}\n' for n in range(40)}
    library = make_library(tmp_path, modules)
    monkeypatch.setattr("moepp.data.sources.load_python_library", lambda validation_fraction: library)
    with caplog.at_level(logging.WARNING, logger="moepp.data"):
        corpus = load_corpus(DataSpec())
    assert [(source.name, source.weight) for source in corpus.sources] == [("prose", 0.5), ("code", 0.5)]
    assert "data.sources[2] ('tests')" in caplog.text
