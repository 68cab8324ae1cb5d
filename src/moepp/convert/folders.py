"""A folder that appears when it is complete: written beside its place, then renamed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError, first_line
from ..files import sync
from ..format import binary


@contextmanager
def appearing(destination: Path, size: int) -> Iterator[Path]:
    """A folder to write in, which becomes ``destination`` when the block ends. Nothing of it is left if it fails.

    What a killed run left beside ``destination`` is removed by the next.

    Args:
        size: bytes that will be written, about.

    Raises:
        DataError: there is something at the destination, no room for it, or it cannot be written.
    """
    require_free(destination)
    destination = destination.resolve()  # a link to an empty folder is replaced where it points
    aside = destination.with_name(f".{destination.name}.incomplete")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        if (free := shutil.disk_usage(destination.parent).free) < size:
            raise DataError(
                f"{destination} needs {binary(size)} and {binary(free)} are free; make room, or convert to another disk"
            )
        aside.mkdir()
        yield aside
        for file in (*aside.iterdir(), aside):
            sync(file)
        aside.replace(destination)
        sync(destination.parent)
    except OSError as error:
        raise DataError(
            f"{destination} could not be written ({first_line(error)}) and does not exist; make room, or convert to "
            "another place"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def require_free(destination: Path) -> None:
    """Refuses to write where there is something already.

    Raises:
        DataError: the destination is a file, or a folder with something in it.
    """
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise DataError(f"{destination} exists and is not an empty folder; give a new one")
