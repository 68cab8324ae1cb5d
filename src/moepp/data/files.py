"""Documents from files on this machine, and errors that name the file and the place in it."""

import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import DataError, nearest
from .hub import open_dataset
from .spec import SourceSpec

_TABLES = (".parquet", ".jsonl")


def read_files(spec: SourceSpec, path: str) -> Iterator[str]:
    """Every document of ``spec.files``, file by file in the order of their names.

    Of several plain files, those without text are passed over, as source trees have them.

    Raises:
        DataError: a pattern matches no file; none of the files has text, or a JSONL or Parquet file has none; a file is
            no UTF-8, or a row has no text.
    """
    files = _matches(spec.files or [], path)
    nothing = True
    for file in files:
        if file.suffix == ".parquet":
            # Streaming, because reading once needs no copy in the library's cache.
            rows = SourceSpec(
                name=spec.name, dataset="parquet", data_files=[str(file)], text_field=spec.text_field, streaming=True
            )
            documents: Iterable[str] = open_dataset(rows, rows.split, path)
        elif file.suffix == ".jsonl":
            documents = _json_lines(file, spec.text_field, path)
        else:
            documents = [text] if (text := _text(file, path)).strip() else []
        empty = True
        for document in documents:
            empty = empty and not document.strip()
            yield document
        if empty and file.suffix in _TABLES:
            raise _no_text(file, path)
        nothing = nothing and empty
    if nothing:
        raise _no_text(files[0], path)


def _no_text(file: Path, path: str) -> DataError:
    return DataError(f"{path}.files: {file} is empty; remove it or put text in it")


def _matches(patterns: list[str], path: str) -> list[Path]:
    found: set[str] = set()
    for pattern in patterns:
        matches = [match for match in glob.glob(pattern, recursive=True) if Path(match).is_file()]
        if not matches:
            raise DataError(f"{path}.files={pattern!r} matches no file; check the path")
        found.update(matches)
    if not found:
        raise DataError(f"{path}.files=[] matches no file; give at least one pattern")
    return [Path(name) for name in sorted(found)]


def _text(file: Path, path: str) -> str:
    data = file.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}.files: {file} is not UTF-8 at byte offset {error.start}; convert it") from error


def _json_lines(file: Path, text_field: str, path: str) -> Iterator[str]:
    # Only "\n" ends a row: JSON allows the other line breaks of Unicode inside a string.
    for number, line in enumerate(_text(file, path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}.files: {file}, line {number} is not JSON: {error}; fix the line") from error
        if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
            keys = row if isinstance(row, dict) else {}
            remedy = "its value is no string" if text_field in keys else nearest(text_field, map(str, keys))
            raise DataError(f"{path}.text_field={text_field!r}: no such text in {file}, line {number}; {remedy}")
        yield row[text_field]
