"""What the standard library leaves to do when a file must survive a crash."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Returns once a file's content, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
