"""What the compatibility tests share."""

from collections import Counter

import pytest


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of each kernel, ours, transformers' and torch's."""
    from ..model.kernels import count_all  # not before tests/conftest.py has told Triton to interpret its kernels

    return count_all(monkeypatch)
