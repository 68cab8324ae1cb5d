"""A routing table in memory and in its Parquet file."""

import dataclasses
import errno
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moepp.analyze import Document, RoutingTable, routing_table, table_rows
from moepp.config import ExpertLayout
from moepp.errors import DataError

from .factory import FACTS, LAYOUT, random_table, written_table

pa = pytest.importorskip("pyarrow")  # where `make gpu` only collects
pq = pytest.importorskip("pyarrow.parquet")


def assert_same(one: RoutingTable, other: RoutingTable) -> None:
    for field in dataclasses.fields(RoutingTable):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
        else:
            assert mine == theirs, field.name


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((200, 3, 2), LAYOUT), ((1, 1, 1), ExpertLayout(1, 0, 0, 0)), ((70, 2, 3), ExpertLayout(300, 1, 0, 2))],
    ids=["usual", "smallest", "more experts than a byte counts"],
)
@pytest.mark.parametrize("rows", [1 << 20, 30], ids=["one group", "many groups"])
def test_a_table_comes_back_from_its_file(
    shape: tuple[int, int, int], layout: ExpertLayout, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_rows, "_GROUP", rows)
    table = random_table(*shape, layout=layout)
    table.write(tmp_path / "t.parquet")
    assert_same(RoutingTable.read(tmp_path / "t.parquet", fingerprint="f" * 64), table)
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_names_and_tokens_of_any_characters_come_back(tmp_path: Path) -> None:
    table = random_table(4)
    vocabulary = dict(zip(table.vocabulary, ["\n", '"\u2581é\0', "\\xe2\\x80", "🙂"], strict=False))
    documents = (Document("bad\udcffname", "a\udcff"), Document("", "ß"))
    table = dataclasses.replace(table, vocabulary=table.vocabulary | vocabulary, documents=documents)
    table.write(tmp_path / "t.parquet")
    assert_same(RoutingTable.read(tmp_path / "t.parquet"), table)


def test_each_row_of_the_file_is_one_choice(tmp_path: Path) -> None:
    table = written_table(
        [[[4, 0], [8, 7]], [[1, 2], [6, 3]]],  # 8 is nobody
        kept=[[[1, 0], [0, 1]], [[1, 1], [1, 1]]],
        score=[[[0.5, 0.25], [0, 0.125]], [[1, 1], [1, 1]]],
        entropy=[[1.5, 0.5], [0.25, 2]],
        loss=[np.nan, 3.5],
        token=[7, 9],
        position=[0, 1],
    )
    table = dataclasses.replace(table, vocabulary={7: " the", 9: "x"}, documents=(Document("d", "prose"),))
    table.write(tmp_path / "t.parquet")
    rows = pq.read_table(tmp_path / "t.parquet").drop(["weight"]).to_pylist()
    first = {"document": 0, "source": "prose", "position": 0, "token_id": 7, "token": " the", "loss": None}
    assert rows[:4] == [
        first | {"layer": 0, "slot": 0, "expert": 4, "type": "constant", "score": 0.5, "kept": True, "entropy": 1.5},
        first | {"layer": 0, "slot": 1, "expert": 0, "type": "ffn", "score": 0.25, "kept": False, "entropy": 1.5},
        first | {"layer": 1, "slot": 0, "expert": 8, "type": "none", "score": 0.0, "kept": False, "entropy": 0.5},
        first | {"layer": 1, "slot": 1, "expert": 7, "type": "zero", "score": 0.125, "kept": True, "entropy": 0.5},
    ]
    assert len(rows) == 8
    assert [row["type"] for row in rows[4:]] == ["ffn", "ffn", "copy", "ffn"]
    assert all((row["token"], row["loss"], row["position"]) == ("x", 3.5, 1) for row in rows[4:])


def test_active_experts_are_kept_ones_of_the_type() -> None:
    table = written_table([[[0, 3], [4, 5]], [[1, 8], [7, 6]]], kept=[[[1, 1], [1, 0]], [[0, 0], [1, 1]]])
    expected = {
        "ffn": [[2, 0], [0, 0]],
        "constant": [[0, 1], [0, 0]],
        "copy": [[0, 0], [0, 1]],
        "zero": [[0, 0], [0, 1]],
    }
    assert {kind: table.active(kind).tolist() for kind in expected} == expected


def test_sources_are_counted_in_the_order_of_the_documents() -> None:
    table = random_table(150)
    assert table.sources == ("a", "b")
    assert table.source.tolist() == [0] * 50 + [1] * 50 + [0] * 50


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "t.parquet"
    random_table(10).write(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(DataError, match=r"^\S+t\.parquet cannot be written: No space left on device; choose another"):
        random_table(20).write(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    # What Arrow itself says of a disk without room.
    monkeypatch.setattr(routing_table, "replacing", lambda path: nullcontext("/dev/full"))
    with pytest.raises(DataError, match=r"^\S+t\.parquet cannot be written: [^\n]*No space left on device[^\n]*$"):
        random_table(10).write(tmp_path / "t.parquet")


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^\S+t\.parquet cannot be written: No such file or directory; choose another folder$"
    ):
        random_table(10).write(tmp_path / "no" / "t.parquet")


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """What another program might make of the file: the metadata is still there."""
    return lambda path: pq.write_table(change(pq.read_table(path)), path)


def metadata(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(table: pa.Table) -> pa.Table:
        about = table.schema.metadata[routing_table.FORMAT]
        assert old in about
        return table.replace_schema_metadata({routing_table.FORMAT: about.replace(old, new)})

    return rewrite(change)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, r"does not exist; give a file that moepp analyze wrote$"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), r"is damaged \(.*\); make the table again$"),
    "text": (lambda path: path.write_text("hello"), r"is damaged \(.*\); make the table again$"),
    "empty": (lambda path: path.write_bytes(b""), r"is damaged \(.*\); make the table again$"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), r"is damaged \(.*\); make the table again$"),
    "a byte flipped": (flip_a_byte, r"is damaged \(.*\); make the table again$"),
    "foreign Parquet": (lambda path: pq.write_table(pa.table({"a": [1]}), path), r"is no routing table; give a file"),
    "rows lost": (rewrite(lambda table: table.slice(0, 600)), r"is damaged \(600 rows instead of 1,200\); make the"),
    "rows in another order": (rewrite(lambda t: t.sort_by("expert")), r"is damaged \(its rows are in another order\)"),
    "a column lost": (rewrite(lambda table: table.drop(["score"])), r"is damaged \(.*\); make the table again$"),
    "another version": (
        metadata(b'"version": 1', b'"version": 2'),
        r"has version 2 of the format, not 1; make it again$",
    ),
    "fewer experts": (metadata(b'"ffn": 4', b'"ffn": 2'), r"is damaged \(experts or documents that do not exist\)"),
    "a token without text": (metadata(b'[3, "t3"]', b'[99, "t3"]'), r"is damaged \(tokens without a text\)"),
    "a fact lost": (metadata(b'"tau": 0.5, ', b""), r"is damaged \(.*'tau'\); make the table again$"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_one_line(name: str, tmp_path: Path) -> None:
    damage, message = BAD[name]
    path = tmp_path / "t.parquet"
    random_table().write(path)
    damage(path)
    with pytest.raises(DataError) as caught:
        RoutingTable.read(path)
    assert re.search(message, str(caught.value))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    random_table().write(path)
    message = r"comes from another model, 'some' \(fingerprint f{12}, not fingerprint 0{12}\); give that model's table"
    with pytest.raises(DataError, match=message):
        RoutingTable.read(path, fingerprint="0" * 64)
    random_table(fingerprint="").write(path)
    with pytest.raises(DataError, match=r"\(no fingerprint, not fingerprint f{12}\)"):
        RoutingTable.read(path, fingerprint=FACTS.fingerprint)


def test_a_table_is_told_from_other_files(tmp_path: Path) -> None:
    random_table().write(tmp_path / "ours")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "theirs")
    (tmp_path / "text").write_text("hello")
    assert {entry.name: RoutingTable.is_in(entry) for entry in tmp_path.iterdir()} == {
        "ours": True,
        "theirs": False,
        "text": False,
    }


def test_memory_is_what_the_docstring_says() -> None:
    table = random_table(100, 3, 2)
    arrays = [getattr(table, field.name) for field in dataclasses.fields(table)]
    size = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
    assert size == 100 * (16 + 3 * 4 + 3 * 2 * 10)
