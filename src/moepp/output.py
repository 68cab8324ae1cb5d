"""What commands write: text files, and names in them."""

import stat
from pathlib import Path

from .errors import DataError
from .files import replacing


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
