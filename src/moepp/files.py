"""What the standard library leaves to do when a file must survive a crash."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError


def sync(path: Path) -> None:
    """Returns once a file's content, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place once the block is through.

    Whatever goes wrong before, ``path`` stays as it was and nothing is left beside it.
    """
    incomplete = path.with_name(f".{path.name}.incomplete")
    try:
        yield incomplete
        sync(incomplete)
        incomplete.replace(path)
    finally:
        incomplete.unlink(missing_ok=True)
    sync(path.parent)


def save_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; what is no file, such as a pipe, is written to.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path = path.resolve()  # a link stays one
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            path.write_text(text, encoding="utf-8")
            return
        with replacing(path) as incomplete:
            incomplete.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; choose another path") from error


def readable(name: str | Path) -> str:
    """A file's name as text; the bytes of one that is not UTF-8 read ``\\udcff``."""
    return str(name).encode("utf-8", "backslashreplace").decode()
