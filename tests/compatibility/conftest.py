"""What the compatibility tests share."""

from collections import Counter
from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """None of these needs a GPU, and the machine of ``make gpu`` may lack the libraries that they import."""
    return True if config.option.markexpr == "gpu" else None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of each kernel, ours, transformers' and torch's."""
    from ..model.kernels import count_all  # not before tests/conftest.py has told Triton to interpret its kernels

    return count_all(monkeypatch)
