"""Text that a command reads: files, or the part of the standard library that models were not trained on."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..data import DataSpec, SourceSpec, load_corpus, read_files
from ..evaluate import VALIDATION_FRACTION
from ..train import RECIPE_FILE, load_recipe

STDLIB = "stdlib"


def read_texts(
    data: str, option: str, models: Iterable[Path], max_characters: int | None = None
) -> dict[str, list[str]]:
    """Documents by source.

    Args:
        data: a pattern of text, JSONL or Parquet files, or ``stdlib``.
        option: where ``data`` was given, for errors.
        models: of the library, what none of their runs was trained on.
        max_characters: of each source, after which no document is read.

    Raises:
        ConfigError, DataError: there is no such file, or one that cannot be read, or a recipe cannot.
    """
    if data != STDLIB:
        return {data: list(_first(read_files(SourceSpec(name=data, files=[data]), option), max_characters))}
    corpus = load_corpus(DataSpec(validation_fraction=held_out_fraction(models)))
    return {source.name: list(source.validation) for source in corpus.sources}


def _first(documents: Iterable[str], characters: int | None) -> Iterator[str]:
    """Documents until they have so many characters, the last one whole."""
    for document in documents:
        yield document
        if characters is not None:
            characters -= len(document)
            if characters <= 0:
                return


def held_out_fraction(models: Iterable[Path]) -> float:
    """What share of the library all these models' runs held out; the default where there is no recipe to ask."""
    return min(map(_held_out_fraction, models))


def _held_out_fraction(path: Path) -> float:
    if not (path / RECIPE_FILE).is_file():
        return VALIDATION_FRACTION
    data = load_recipe(path / RECIPE_FILE).data
    trained_on_it = any(source.python_library for source in data.sources)
    return min(data.validation_fraction, VALIDATION_FRACTION) if trained_on_it else VALIDATION_FRACTION
