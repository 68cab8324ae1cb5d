"""From a :class:`DataSpec` to text: every source's training and validation documents, and what identifies them."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from ..errors import DataError
from .files import read_files
from .hashing import digest, unit_hash
from .hub import Stream, open_dataset
from .python_library import load_python_library
from .spec import DataSpec, SourceSpec, check_spec

__all__ = ["Corpus", "DataSpec", "Source", "SourceSpec", "load_corpus", "sample_documents"]

_log = logging.getLogger("moepp.data")


@dataclass(frozen=True)
class Source:
    """Documents under one name. In memory both splits are lists; a streaming source has :class:`Stream`s.

    Attributes:
        weight: share of the training samples; the weights of a corpus sum to one.
    """

    name: str
    weight: float
    train: list[str] | Stream
    validation: list[str] | Stream

    @property
    def streaming(self) -> bool:
        return isinstance(self.train, Stream)

    def splits(self) -> Iterator[tuple[str, list[str] | Stream]]:
        yield "train", self.train
        yield "validation", self.validation


@dataclass(frozen=True)
class Corpus:
    """The sources of a mixture, in the order of the recipe."""

    sources: tuple[Source, ...]

    @cached_property
    def hash(self) -> str:
        """sha256 over names, splits and every document; of a streaming source, over its identity only."""
        return digest(self._parts())

    def _parts(self) -> Iterator[str]:
        for source in self.sources:
            for split, documents in source.splits():
                yield f"{source.name}/{split}/{len(documents) if isinstance(documents, list) else 'stream'}"
                yield from documents if isinstance(documents, list) else [documents.identity]

    def describe(self) -> list[dict[str, str | float | int | None]]:
        """One row per source and split: source, split, weight, documents, bytes (UTF-8; ``None`` where unknown)."""
        rows: list[dict[str, str | float | int | None]] = []
        for source in self.sources:
            for split, documents in source.splits():
                known = isinstance(documents, list)
                rows.append(
                    {
                        "source": source.name,
                        "split": split,
                        "weight": source.weight,
                        "documents": len(documents) if known else None,
                        "bytes": sum(map(utf8_length, documents)) if known else None,
                    }
                )
        return rows


def load_corpus(spec: DataSpec) -> Corpus:
    """Read every source. Those in memory are read now: about six seconds for the standard library.

    A part of the standard library that this Python distribution lacks (often the tests) is left out with a warning,
    and the other weights are scaled up; anything else that cannot be read raises.

    Raises:
        ConfigError: a field of the specification cannot work.
        DataError: a source cannot be read, or none is left.
    """
    check_spec(spec)
    sources: list[Source] = []
    for index, source_spec in enumerate(spec.sources):
        path = f"data.sources[{index}]"
        source = _load_source(source_spec, spec.validation_fraction, path)
        if source_spec.python_library and not (source.train and (source.validation or not spec.validation_fraction)):
            _log.warning(
                "%s (%r): this Python distribution has too few modules for the %s of its library; "
                "the other sources take its share",
                *(path, source.name, source_spec.python_library),
            )
            continue
        if isinstance(source.train, list) and not any(map(str.strip, source.train)):
            raise DataError(f"{path} ({source.name!r}) has no training text; add documents or remove the source")
        sources.append(source)
    if not sources:
        raise DataError("data.sources: none of the sources exists in this Python; name files or a dataset")
    total = sum(source.weight for source in sources)
    return Corpus(tuple(replace(source, weight=source.weight / total) for source in sources))


def sample_documents(corpus: Corpus, max_bytes: int = 8_000_000) -> Iterator[str]:
    """Training documents of about ``max_bytes`` UTF-8 bytes in all, shared by weight: what a tokenizer learns from.

    Of a source in memory evenly spaced documents are taken, of a streaming one the first.
    """
    for source in corpus.sources:
        budget = int(max_bytes * source.weight)
        documents: Iterable[str] = source.train
        if isinstance(documents, list):
            size = sum(map(utf8_length, documents))
            documents = islice(documents, 0, None, max(1, size // max(1, budget)))
        yield from _first_bytes(documents, budget)


def utf8_length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _load_source(spec: SourceSpec, fraction: float, path: str) -> Source:
    if spec.python_library is not None:
        splits = load_python_library(validation_fraction=fraction).documents[spec.python_library]  # pyright: ignore[reportArgumentType]
        return _limited(Source(spec.name, spec.weight, list(splits["train"]), list(splits["validation"])), spec)
    if spec.files is not None:
        return _limited(Source(spec.name, spec.weight, *_split(list(read_files(spec, path)), fraction)), spec)
    stream = open_dataset(spec, spec.split, path)
    held_out = None if spec.validation_split is None else open_dataset(spec, spec.validation_split, path)
    if not spec.streaming:
        splits = (list(stream), list(held_out)) if held_out else _split(list(stream), fraction)
        return _limited(Source(spec.name, spec.weight, *splits), spec)
    if held_out:
        return Source(spec.name, spec.weight, stream, held_out)
    if not fraction:
        return Source(spec.name, spec.weight, stream, [])
    return Source(
        spec.name,
        spec.weight,
        stream.filter(lambda text: unit_hash(text) >= fraction),
        stream.filter(lambda text: unit_hash(text) < fraction),
    )


def _limited(source: Source, spec: SourceSpec) -> Source:
    return source if spec.max_bytes is None else replace(source, train=list(_first_bytes(source.train, spec.max_bytes)))


def _first_bytes(documents: Iterable[str], max_bytes: int) -> Iterator[str]:
    """The first documents, the last one cut (at a character) so that at most ``max_bytes`` bytes are left."""
    for document in documents:
        data = document.encode("utf-8", "surrogatepass")
        if len(data) >= max_bytes:
            yield data[:max_bytes].decode("utf-8", "ignore")
            return
        max_bytes -= len(data)
        yield document


def _split(documents: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
    """Hold out by a hash of the text: equal documents stay together, and more documents move none.

    Few documents may leave one side empty. Then the one with the lowest hash is held out, and a single document is cut
    in two at a line break: whoever trains on one file wants a validation loss too.
    """
    if not fraction or not documents:
        return list(documents), []
    shares = [unit_hash(document) for document in documents]
    distinct = sorted(set(shares))
    if len(distinct) == 1:
        text, cut = documents[0], round(len(documents[0]) * (1 - fraction))
        cut = text.rfind("\n", 0, cut) + 1 or cut
        return [text[:cut]], [text[cut:]]
    threshold = min(max(fraction, distinct[1]), distinct[-1])
    train = [document for document, share in zip(documents, shares, strict=True) if share >= threshold]
    held_out = [document for document, share in zip(documents, shares, strict=True) if share < threshold]
    return train, held_out
