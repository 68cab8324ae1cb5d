"""Documents from the ``datasets`` library: the Hugging Face hub's data sets, and its readers of local files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, first_line, nearest
from .spec import SourceSpec


@dataclass(frozen=True)
class Stream:
    """Documents in shards that can be read again, in any order.

    Attributes:
        num_shards: how many parts there are: files, for most data sets.
        read_shard: the documents of one part, in a fixed order.
        identity: what the data set is, as far as its owner says: name, subset, split, fingerprint.
    """

    num_shards: int
    read_shard: Callable[[int], Iterable[str]]
    identity: str = ""

    def __iter__(self) -> Iterator[str]:
        for shard in range(self.num_shards):
            yield from self.read_shard(shard)

    def filter(self, keep: Callable[[str], bool]) -> "Stream":
        """The same shards, with those documents that ``keep`` accepts."""
        return Stream(self.num_shards, lambda shard: filter(keep, self.read_shard(shard)), self.identity)

    @classmethod
    def of(cls, documents: Sequence[str]) -> "Stream":
        """A list as a stream: each document a shard, so that shuffling shards shuffles documents."""
        return cls(len(documents), lambda shard: [documents[shard]])


def open_dataset(spec: SourceSpec, split: str, path: str) -> Stream:
    """The documents of one split; with ``spec.streaming`` nothing is read before it is asked for.

    Raises:
        DataError: ``datasets`` is missing, or cannot find or read the data set, or it has no such column.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise DataError(f"{path}.dataset={spec.dataset!r} needs the datasets library; pip install datasets") from error

    data_files = None if spec.data_files is None else _expand(spec.data_files, path)
    try:
        # Lists of thousands of URLs are cheap here; with streaming each is opened when its turn comes.
        data: Any = datasets.load_dataset(
            spec.dataset or "", spec.subset, split=split, streaming=spec.streaming, data_files=data_files
        )
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        where = f"{path}.dataset={spec.dataset!r}" + (f", subset {spec.subset!r}" if spec.subset else "")
        raise DataError(f"{where}, split {split!r} cannot be opened: {first_line(error)}; check the names") from error
    if data.column_names is not None and spec.text_field not in data.column_names:
        raise DataError(
            f"{path}.text_field={spec.text_field!r} is no column of {spec.dataset!r}; "
            f"{nearest(spec.text_field, data.column_names)}"
        )

    fingerprint = "" if spec.streaming else data._fingerprint
    identity = f"{spec.dataset}/{spec.subset}/{split}/{spec.text_field}/{data_files}/{fingerprint}"
    if spec.streaming:
        num_shards = data.num_shards
        return Stream(num_shards, lambda shard: _texts(data.shard(num_shards, shard), spec, path), identity)
    return Stream(1, lambda _: _texts(data.select_columns(spec.text_field), spec, path), identity)


def _texts(rows: Iterable[dict[str, Any]], spec: SourceSpec, path: str) -> Iterator[str]:
    """The text of every row; rows with none (a null) are passed over."""
    for number, row in enumerate(_readable(rows, spec, path)):
        if spec.text_field not in row:
            raise DataError(f"{path}.text_field={spec.text_field!r}: not in a row; {nearest(spec.text_field, row)}")
        text = row[spec.text_field]
        if isinstance(text, str):
            yield text
        elif text is not None:
            raise DataError(
                f"{path}.text_field={spec.text_field!r} is a {type(text).__name__} in row {number} of "
                f"{spec.dataset!r}; name a column of strings"
            )


def _readable(rows: Iterable[dict[str, Any]], spec: SourceSpec, path: str) -> Iterator[dict[str, Any]]:
    """The rows; what cannot be read of a stream is found out only here."""
    from datasets.exceptions import DatasetsError

    number = 0
    try:
        for row in rows:
            yield row
            number += 1
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"{path}.dataset={spec.dataset!r} cannot be read after row {number}: {first_line(error)}; repair the data"
        ) from error


def _expand(data_files: list[str], path: str) -> list[str]:
    """Replace ``@LIST`` by the lines of LIST, which may be a path or anything ``fsspec`` opens."""
    import fsspec

    names = []
    for entry in data_files:
        if not entry.startswith("@"):
            names.append(entry)
            continue
        try:
            with fsspec.open(entry[1:], "rt") as lines:
                names += [line.strip() for line in lines if line.strip()]  # pyright: ignore[reportGeneralTypeIssues]
        except (OSError, ValueError, ImportError) as error:
            raise DataError(
                f"{path}.data_files={entry!r}: the list cannot be read: {first_line(error)}; check the path"
            ) from error
    return names
