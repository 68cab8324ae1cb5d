"""What the compatibility tests share."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """None of these needs a GPU, and the machine of ``make gpu`` may lack the libraries that they import."""
    return True if config.option.markexpr == "gpu" else None
