"""What the model's tests share."""

from collections import Counter

import pytest


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of each of our kernels."""
    from .kernels import count_ours  # not before tests/conftest.py has told Triton to interpret its kernels

    return count_ours(monkeypatch)
