"""What the standard library leaves to do when a file must survive a crash."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
