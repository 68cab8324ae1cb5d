"""What a recipe says about data: plain dataclasses, so a recipe reader can use them as its schema."""

import math
from dataclasses import dataclass, field

from ..errors import ConfigError, nearest

KINDS = ("python_library", "files", "dataset")
PARTS = ("prose", "code", "tests")


@dataclass
class SourceSpec:
    """One source of text. Exactly one of ``python_library``, ``files`` and ``dataset`` says where it comes from.

    Attributes:
        name: how tables, losses and errors call it; unique.
        weight: its share of the training samples, relative to the other sources' weights.
        python_library: ``"prose"``, ``"code"`` or ``"tests"`` of the running interpreter's standard library.
        files: glob patterns. ``.jsonl`` and ``.parquet`` files hold one document a row, in ``text_field``; any other
            file is UTF-8 text and one document.
        dataset: a Hugging Face data set, or a builder (``"json"``, ``"parquet"``, ``"text"``) for ``data_files``.
        data_files: paths or URLs for ``dataset``; ``"@LIST"`` stands for the ones in the text file LIST, one a line.
        subset: the data set's configuration.
        split: its split to train on.
        validation_split: its split to validate on; ``None`` holds out a share of ``split``.
        streaming: read while training instead of before; for what does not fit in memory.
        text_field: the column, or key, that holds the text.
        max_bytes: keep at most this many UTF-8 bytes of training documents, the first ones; not for streaming.
    """

    name: str
    weight: float = 1.0
    python_library: str | None = None
    files: list[str] | None = None
    dataset: str | None = None
    data_files: list[str] | None = None
    subset: str | None = None
    split: str = "train"
    validation_split: str | None = None
    streaming: bool = False
    text_field: str = "text"
    max_bytes: int | None = None


def _python_library() -> list[SourceSpec]:
    return [SourceSpec(name=part, python_library=part) for part in PARTS]


@dataclass
class DataSpec:
    """A mixture of sources; without any, the standard library's prose, code and tests in equal shares.

    Attributes:
        sequence_length: tokens of one sample.
        sources: what is mixed.
        validation_fraction: share of documents (for ``python_library``, of module groups) held out, in [0, 1).
            0 leaves validation to sources with a ``validation_split``.
        max_validation_tokens: per source; evenly spaced blocks are used when more is held out.
        stream_lanes: parts that streaming text is read in, each by one process, so the number of processes that read
            different data must divide it. It decides, with the batch size of a process, which samples a step has; the
            number of processes doesn't. A source with fewer files than lanes is read once by each lane, so more is not
            better; the default serves the usual machines, with up to eight GPUs.
    """

    sequence_length: int = 256
    sources: list[SourceSpec] = field(default_factory=_python_library)
    validation_fraction: float = 0.05
    max_validation_tokens: int = 1_000_000
    stream_lanes: int = 8


def check_spec(spec: DataSpec) -> None:
    """Raise ``ConfigError`` for the first field that cannot work."""
    if spec.sequence_length < 2:
        raise ConfigError(f"data.sequence_length={spec.sequence_length} leaves no token to predict; use at least 2")
    if not 0 <= spec.validation_fraction < 1:
        raise ConfigError(f"data.validation_fraction={spec.validation_fraction} is outside [0, 1); 0.05 is usual")
    if spec.max_validation_tokens < spec.sequence_length:
        raise ConfigError(
            f"data.max_validation_tokens={spec.max_validation_tokens} is less than one block of "
            f"data.sequence_length={spec.sequence_length}; raise it"
        )
    if spec.stream_lanes < 1:
        raise ConfigError(f"data.stream_lanes={spec.stream_lanes} reads nothing; use the number of processes, or more")
    if not spec.sources:
        raise ConfigError("data.sources=[] gives nothing to train on; name at least one source")
    names: set[str] = set()
    for index, source in enumerate(spec.sources):
        _check_source(source, f"data.sources[{index}]")
        if source.name in names:
            raise ConfigError(f"data.sources[{index}].name={source.name!r} is taken; give every source its own name")
        names.add(source.name)


def _check_source(source: SourceSpec, path: str) -> None:
    if not (source.weight > 0 and math.isfinite(source.weight)):
        raise ConfigError(f"{path}.weight={source.weight} is not a positive number; leave the source out instead")
    given = [kind for kind in KINDS if getattr(source, kind) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise ConfigError(f"{path} ({source.name!r}) gives {found}; give exactly one of {', '.join(KINDS)}")
    if source.python_library is not None and source.python_library not in PARTS:
        raise ConfigError(
            f"{path}.python_library={source.python_library!r} is no part of the library; "
            f"{nearest(source.python_library, PARTS)}"
        )
    if source.max_bytes is not None and source.max_bytes < 1:
        raise ConfigError(f"{path}.max_bytes={source.max_bytes} keeps nothing; use null for everything")
    if source.streaming and source.dataset is None:
        raise ConfigError(f"{path}.streaming=true needs a dataset; {given[0]} is read into memory, so remove it")
    if source.streaming and source.max_bytes is not None:
        raise ConfigError(f"{path}.max_bytes={source.max_bytes} is for sources in memory; remove it or streaming")
    if source.dataset is None:
        for name in ("data_files", "subset", "validation_split"):
            if getattr(source, name) is not None:
                raise ConfigError(f"{path}.{name}={getattr(source, name)!r} needs a dataset; remove it")
