"""Files that are written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from moepp.bench.rows import write_results
from moepp.errors import DataError
from moepp.files import readable, save_text


def test_a_text_takes_the_place_of_another_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for text in ("one", "zwölf"):
        save_text(tmp_path / "link", text)
        assert (tmp_path / "file").read_text(encoding="utf-8") == text
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_what_is_no_file_is_written_to() -> None:
    save_text(Path(os.devnull), "text")
    assert not Path(os.devnull).is_file()


def test_results_that_cannot_be_written_cost_none_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    write_results(path, {"command": "moepp"}, [{"a": 1}])
    before = path.read_bytes()
    write = Path.write_text

    def full(self: Path, text: str, **of: str) -> int:
        write(self, text[:5], **of)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    message = r"^\S+rows\.json cannot be written: No space left on device; choose another path$"
    with pytest.raises(DataError, match=message):
        write_results(path, {"command": "moepp"}, [{"a": 2}])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.json"]


def test_a_name_that_is_not_utf_8_can_be_read() -> None:
    assert readable(Path(os.fsdecode(b"a\xff"))) == r"a\udcff"
    assert readable("ä") == "ä"
