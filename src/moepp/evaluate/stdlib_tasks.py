"""The data sets behind ``tasks/stdlib/*.yaml``, made on the spot from the running interpreter's library."""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..data import DataSpec, digest, load_corpus, load_held_out_functions, load_python_library, sample_documents
from ..errors import DataError
from .stdlib_items import Item, line_items, name_items, summary_items

if TYPE_CHECKING:
    from datasets import DatasetDict

VALIDATION_FRACTION = 0.05
"""The training recipes' default share of module groups that is held out."""


# The harness calls these with a task's whole metadata, ours and its own.


def summaries(validation_fraction: float = VALIDATION_FRACTION, **_: Any) -> "DatasetDict":
    return _dataset("summary", validation_fraction)


def lines(validation_fraction: float = VALIDATION_FRACTION, **_: Any) -> "DatasetDict":
    return _dataset("line", validation_fraction)


def names(validation_fraction: float = VALIDATION_FRACTION, **_: Any) -> "DatasetDict":
    return _dataset("name", validation_fraction)


@lru_cache
def stdlib_items(kind: str, validation_fraction: float) -> list[Item]:
    """The questions of one kind: ``"summary"``, ``"line"`` or ``"name"``.

    Raises:
        DataError: this Python came without the sources to ask about.
    """
    documents = load_python_library(validation_fraction=validation_fraction).documents
    if kind == "summary":
        functions = load_held_out_functions(validation_fraction=validation_fraction)
        found = summary_items(functions, documents["prose"]["train"])
    elif kind == "line":
        found = line_items(documents["code"]["validation"], documents["code"]["train"] + documents["tests"]["train"])
    else:
        found = name_items(documents["code"]["validation"])
    if not found:
        raise DataError(
            f"this Python's library holds out nothing to ask about at validation_fraction={validation_fraction}; "
            "raise it, or use a Python that came with its sources"
        )
    return found


def items_hash(kind: str, validation_fraction: float) -> str:
    """What two results must share to be compared: Python versions differ in their libraries."""
    return digest(map(repr, stdlib_items(kind, validation_fraction)))


def training_texts(validation_fraction: float, max_bytes: int = 3_000_000) -> Iterator[str]:
    """Evenly spaced texts of the training split, for counting tokens."""
    return sample_documents(load_corpus(DataSpec(validation_fraction=validation_fraction)), max_bytes)


def _dataset(kind: str, validation_fraction: float) -> "DatasetDict":
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(stdlib_items(kind, validation_fraction))})  # pyright: ignore[reportArgumentType]
