"""What commands ask of their options."""

import os
from pathlib import Path

from ..errors import ConfigError


def option_name(name: str) -> str:
    """``--batch-size`` for ``batch_size``."""
    return "--" + name.replace("_", "-")


def require_at_least_one(options: object, *names: str) -> None:
    """Refuses what counts something and is 0 or less; None is fine.

    Raises:
        ConfigError: one of the fields is.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{option_name(name)}={value} must be at least 1")


def require_writable(option: str, path: Path) -> None:
    """Finds out before the measuring whether the file can be written.

    Raises:
        ConfigError: it cannot.
    """
    existed = path.exists()
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    except OSError as error:
        raise ConfigError(f"{option}={str(path)!r} cannot be written: {error.strerror}; choose another path") from error
    if not existed:
        path.unlink()
