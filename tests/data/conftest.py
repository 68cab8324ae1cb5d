import pytest

from moepp.data import train_tokenizer
from moepp.data.python_library import PythonLibrary, load_python_library


@pytest.fixture(scope="session")
def library() -> PythonLibrary:
    """The running interpreter's library, read once: it takes seconds."""
    return load_python_library(validation_fraction=0.05)


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(
        ["the quick brown fox jumps over the lazy dog. " * 20, "def f(x):\n    return x\n" * 20], 300
    )
