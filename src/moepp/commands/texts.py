"""Text that a command reads: files, or the part of the standard library that models were not trained on."""

from collections.abc import Iterable
from pathlib import Path

from ..data import DataSpec, SourceSpec, load_corpus, read_files
from ..evaluate import VALIDATION_FRACTION
from ..train import RECIPE_FILE, load_recipe

STDLIB = "stdlib"


def read_texts(data: str, option: str, fraction: float) -> dict[str, list[str]]:
    """Documents by source.

    Args:
        data: a pattern of text, JSONL or Parquet files, or ``stdlib``.
        option: where ``data`` was given, for errors.
        fraction: of the library, that is held out.

    Raises:
        DataError: there is no such file, or one that cannot be read.
    """
    if data != STDLIB:
        return {data: list(read_files(SourceSpec(name=data, files=[data]), option))}
    corpus = load_corpus(DataSpec(validation_fraction=fraction))
    return {source.name: list(source.validation) for source in corpus.sources}


def held_out_fraction(models: Iterable[Path]) -> float:
    """What share of the library all these models' runs held out; the default where there is no recipe to ask."""
    return min(map(_held_out_fraction, models))


def _held_out_fraction(path: Path) -> float:
    if not (path / RECIPE_FILE).is_file():
        return VALIDATION_FRACTION
    data = load_recipe(path / RECIPE_FILE).data
    trained_on_it = any(source.python_library for source in data.sources)
    return min(data.validation_fraction, VALIDATION_FRACTION) if trained_on_it else VALIDATION_FRACTION
