import json
import subprocess
import sys

import pytest

from moepp.data import DataSpec, SourceSpec, load_corpus, read_files, sample_documents
from moepp.data.sources import _split
from moepp.errors import ConfigError, DataError


def spec(*sources, **fields):
    return DataSpec(sources=list(sources), **fields)


def write_jsonl(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return str(path)


TEXTS = [f"document {n}: {'word ' * (n % 7)}" for n in range(200)]


def test_files_of_every_kind(tmp_path):
    import datasets

    for name in ("a.txt", "b.md", "sub/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    write_jsonl(tmp_path / "d.jsonl", ["row 1\u2028still row 1", "row 2"])
    datasets.Dataset.from_dict({"text": ["parquet 1", None, "parquet 2"]}).to_parquet(tmp_path / "e.parquet")
    source = SourceSpec("files", files=[f"{tmp_path}/**/*"])
    (found,) = load_corpus(spec(source, validation_fraction=0.0)).sources
    assert found.train == [
        *("text of a.txt", "text of b.md", "row 1\u2028still row 1", "row 2", "parquet 1", "parquet 2"),
        "text of sub/c.py",
    ]
    assert found.validation == []


def test_split_is_by_text(tmp_path):
    source = SourceSpec("s", files=[write_jsonl(tmp_path / "a.jsonl", TEXTS + TEXTS[:50])])
    (found,) = load_corpus(spec(source, validation_fraction=0.1)).sources
    assert 8 < len(found.validation) < 40
    assert not set(found.train) & set(found.validation)
    assert sorted(found.train + found.validation) == sorted(TEXTS + TEXTS[:50])


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_few_documents_leave_no_side_empty(count, fraction):
    train, held_out = _split(TEXTS[:count], fraction)
    assert train
    assert held_out
    assert sorted(train + held_out) == sorted(TEXTS[:count])


def test_one_document_is_cut_at_a_line():
    text = "".join(f"line {n}\n" for n in range(100))
    (train,), (held_out,) = _split([text], 0.1)
    assert train + held_out == text
    assert train.endswith("\n")
    assert 0.05 < len(held_out) / len(text) < 0.15


def test_weights_are_shares_and_the_hash_covers_the_text(tmp_path):
    sources = [SourceSpec(name, weight=weight, files=[str(tmp_path / name)]) for name, weight in [("a", 3), ("b", 1)]]
    write = {name: (tmp_path / name).write_text for name in "ab"}
    write["a"]("some text\nand more\n")
    write["b"]("other text\nand more\n")
    corpus = load_corpus(spec(*sources))
    assert [source.weight for source in corpus.sources] == [0.75, 0.25]
    assert corpus.hash == load_corpus(spec(*sources)).hash
    rows = corpus.describe()
    assert [(row["source"], row["split"], row["documents"]) for row in rows][:2] == [
        ("a", "train", 1),
        ("a", "validation", 1),
    ]
    assert sum(row["bytes"] for row in rows) == len("some text\nand more\nother text\nand more\n")
    before = corpus.hash
    write["b"]("other text\nand  more\n")
    assert load_corpus(spec(*sources)).hash != before


def test_max_bytes_and_samples(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["é" * 50] * 3 + TEXTS)
    corpus = load_corpus(spec(SourceSpec("a", files=[path], max_bytes=125)))
    assert len("".join(corpus.sources[0].train).encode()) in (124, 125)
    whole = load_corpus(spec(SourceSpec("a", files=[path])))
    sample = list(sample_documents(whole, 1000))
    assert 500 <= sum(len(text.encode()) for text in sample) <= 1000
    assert any(text in TEXTS[150:] for text in sample), "evenly spaced, not the first"


def bad_spec(**fields):
    return {"name": "s", "files": ["x"], **fields}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (bad_spec(weight=0), r"^data\.sources\[0\]\.weight=0 is not a positive number"),
        (bad_spec(dataset="json"), r"^data\.sources\[0\] \('s'\) gives files and dataset; give exactly one of"),
        ({"name": "s"}, r"gives none of them; give exactly one of python_library, files, dataset$"),
        ({"name": "s", "python_library": "prse"}, r"python_library='prse' is no part .*; did you mean 'prose'\?$"),
        (bad_spec(streaming=True), r"\.streaming=true needs a dataset; files is read into memory"),
        (bad_spec(subset="en"), r"\.subset='en' needs a dataset; remove it$"),
        (bad_spec(max_bytes=0), r"\.max_bytes=0 keeps nothing"),
        ({"name": "s", "dataset": "x", "streaming": True, "max_bytes": 9}, r"\.max_bytes=9 is for sources in memory"),
    ],
)
def test_source_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        load_corpus(spec(SourceSpec(**fields)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": []}, r"^data\.sources=\[\] gives nothing"),
        ({"sequence_length": 1}, r"^data\.sequence_length=1 leaves no token to predict; use at least 2$"),
        ({"validation_fraction": 1.0}, r"^data\.validation_fraction=1\.0 is outside \[0, 1\)"),
        ({"max_validation_tokens": 10}, r"^data\.max_validation_tokens=10 is less than one block"),
        ({"sources": [SourceSpec("s", python_library="code")] * 2}, r"^data\.sources\[1\]\.name='s' is taken"),
    ],
)
def test_data_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        load_corpus(DataSpec(**fields))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing*", None, r"^data\.sources\[0\]\.files='.*missing\*' matches no file; check the path$"),
        ("a.txt", b"", r"a\.txt is empty; remove it or put text in it$"),
        ("a.jsonl", b"\n\n", r"a\.jsonl is empty"),
        ("a.txt", b"good \xff bad", r"a\.txt is not UTF-8 at byte offset 5; convert it$"),
        ("a.jsonl", b'{"text": "x"}\n\n{"txt": "y"}', r"no such text in .*, line 3; did you mean 'txt'\?$"),
        ("a.jsonl", b'{"text": 3}', r"line 1; its value is no string$"),
        ("a.jsonl", b'{"text": "x"}\n{"text', r"line 2 is not JSON: .*; fix the line$"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_corpus(spec(SourceSpec("s", files=[str(tmp_path / name)])))
    assert "\n" not in str(error.value)


def test_plain_files_without_text_are_passed_over(tmp_path):
    for name, content in {"a.py": "", "b.py": "import this\n", "c.py": "\n"}.items():
        (tmp_path / name).write_text(content)

    def documents(*patterns):
        return list(read_files(SourceSpec("s", files=[str(tmp_path / pattern) for pattern in patterns]), "data"))

    assert documents("*.py") == ["import this\n"]
    with pytest.raises(DataError, match=r"^data\.files: \S+a\.py is empty; remove it or put text in it$"):
        documents("[ac].py")
    (tmp_path / "d.jsonl").write_text("")
    with pytest.raises(DataError, match=r"^data\.files: \S+d\.jsonl is empty"):
        documents("*")


def test_nothing_left(monkeypatch):
    from moepp.data.python_library import PythonLibrary

    monkeypatch.setattr("moepp.data.sources.load_python_library", lambda validation_fraction: PythonLibrary())
    with pytest.raises(DataError, match=r"^data\.sources: none of the sources exists in this Python"):
        load_corpus(DataSpec())


def test_importing_is_light():
    heavy = ["transformers", "tokenizers", "datasets", "omegaconf", "pyarrow"]
    code = f"import sys, moepp.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_no_optional_library_is_needed():
    code = (
        "import sys\n"
        "sys.modules.update(datasets=None, omegaconf=None, pyarrow=None, transformers=None)\n"
        "from moepp.data import DataSpec, SourceSpec, load_corpus\n"
        "spec = DataSpec(sources=[SourceSpec('s', files=[__import__('glob').__file__])])\n"
        "print(len(load_corpus(spec).sources), len(DataSpec().sources))\n"
        "spec.sources = [SourceSpec('s', dataset='json')]\n"
        "try:\n    load_corpus(spec)\nexcept ValueError as error:\n    print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [
        "1 3",
        "data.sources[0].dataset='json' needs the datasets library; pip install datasets",
    ]


def test_default_corpus(library):
    corpus = load_corpus(DataSpec())
    assert [source.name for source in corpus.sources if source.validation][:2] == ["prose", "code"]
    assert corpus.sources[0].train == library.documents["prose"]["train"]


def test_a_stream_that_breaks_while_it_is_read_is_a_data_error(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "fine"}\n' * 50 + '{"text": broken\n', encoding="utf-8")
    source = SourceSpec(name="s", dataset="json", data_files=[str(path)], streaming=True)
    with pytest.raises(DataError, match=r"data\.sources\[0\]\.dataset='json'.* cannot be (read|opened)"):
        list(load_corpus(DataSpec(sources=[source])).sources[0].train)
