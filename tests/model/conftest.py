"""What the model's tests share."""

from collections import Counter
from dataclasses import replace

import pytest

import moepp.ops

from .factory import counted


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of each of our kernels."""
    counter: Counter[str] = Counter()
    for name, backend in list(moepp.ops._BACKENDS.items()):
        monkeypatch.setitem(moepp.ops._BACKENDS, name, replace(backend, run=counted(counter, name, backend.run)))
    return counter
