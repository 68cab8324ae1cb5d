"""What tells one saved model from another."""

import hashlib
from pathlib import Path

from transformers.utils import CONFIG_NAME

from ..errors import DataError, first_line
from ..model.shards import weight_files


def fingerprint(folder: Path) -> str:
    """sha256 of a saved model's configuration and weights: of every byte, a gigabyte a second or more.

    Raises:
        DataError: they are missing or cannot be read.
    """
    state = hashlib.sha256()
    for path in (folder / CONFIG_NAME, *weight_files(folder)):
        try:
            with path.open("rb") as file:
                state.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{path} cannot be read ({first_line(error)}); copy or download it again") from error
    return state.hexdigest()
