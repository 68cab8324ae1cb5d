"""Every choice that a model's routers made on a text: :class:`RoutingTable`, and the Parquet file that keeps one.

In memory a token takes 16 bytes, 4 for each layer and 10 for each of its choices (of at most 255 experts). In the file
each choice is a row, so that ``pandas.read_parquet`` or ``duckdb`` need nothing from here; what a row repeats of its
token or layer costs next to nothing there. The file is written in groups of rows and read column by column.

T tokens, L MoE layers, K top-k, E all experts.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt

from ..config import ExpertLayout, ExpertType
from ..errors import DataError, first_line
from ..files import replacing
from .table_rows import NUMBERS, read_columns, row_groups

FORMAT = b"moepp.routing_table"
"""The key of the file's metadata: JSON of everything that is not a column."""
_VERSION = 1


@dataclass(frozen=True)
class Document:
    """Where a token comes from."""

    name: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a table was made from."""

    model: str
    """The name of its folder."""
    fingerprint: str
    """Of its files; empty for a model that was not saved. See :func:`moepp.analyze.fingerprint`."""
    tau: float
    gating_residual: bool
    dtype: str
    window: int
    """Tokens that the model saw at once, at most."""
    edited: bool
    """Whether the routing was tampered with, by an edit or a selection bias."""
    tokenizer_hash: str
    text_hash: str
    """Of the documents' tokens; windows don't matter."""
    versions: dict[str, str]
    command: str
    shared_experts: int = 0
    """FFN experts that every token goes through in each layer, beside the K that it chooses."""


@dataclass(frozen=True, kw_only=True)
class RoutingTable:
    """The routing of T tokens in L layers, K choices each, the most probable first.

    Tokens stand in the order of the text: document by document, window by window. There is at least one.
    """

    layout: ExpertLayout
    expert: UInt[np.ndarray, "T L K"]
    """The chosen experts; ``layout.num_experts`` is nobody, where an edit took the choice away."""
    score: Float32[np.ndarray, "T L K"]
    """The router's probability of the chosen expert, before ``combine``."""
    weight: Float32[np.ndarray, "T L K"]
    """What the expert's output was multiplied by; 0 where dropped."""
    kept: Bool[np.ndarray, "T L K"]
    """False where capacity dropped the choice or nobody was chosen."""
    entropy: Float32[np.ndarray, "T L"]
    """Nats, of the router's distribution over all experts."""
    loss: Float32[np.ndarray, "T"]
    """Nats of predicting this token from what stands before it in its window; NaN for a window's first."""
    token: Int32[np.ndarray, "T"]
    position: Int32[np.ndarray, "T"]
    """Within its window, from 0."""
    document: Int32[np.ndarray, "T"]
    """Index into ``documents``."""
    vocabulary: dict[int, str]
    """The text of each token id that occurs, in the order of the ids."""
    documents: tuple[Document, ...]
    facts: Facts

    def __post_init__(self) -> None:
        shape = self.expert.shape
        assert len(shape) == 3
        assert self.score.shape == self.weight.shape == self.kept.shape == shape
        assert self.entropy.shape == shape[:2]
        assert self.loss.shape == self.token.shape == self.position.shape == self.document.shape == shape[:1]

    @property
    def num_tokens(self) -> int:
        return self.expert.shape[0]

    @property
    def num_layers(self) -> int:
        return self.expert.shape[1]

    @property
    def top_k(self) -> int:
        return self.expert.shape[2]

    @property
    def sources(self) -> tuple[str, ...]:
        """Their names, each once, in the order of the documents."""
        return tuple(dict.fromkeys(document.source for document in self.documents))

    @property
    def source(self) -> Int32[np.ndarray, "T"]:
        """Index into ``sources``."""
        names = {name: index for index, name in enumerate(self.sources)}
        return np.array([names[document.source] for document in self.documents], np.int32)[self.document]

    def active(self, kind: ExpertType) -> UInt[np.ndarray, "T L"]:
        """How many experts of one type each token went through in each layer; dropped choices don't count."""
        ids = self.layout.indices(kind)
        chosen = (self.expert >= ids.start) & (self.expert < ids.stop) & self.kept
        return chosen.sum(axis=-1, dtype=np.uint8)

    def write(self, path: Path) -> None:
        """Writes a Parquet file, whole or not at all.

        Columns: document, source, position, token_id, token, layer, slot, expert, type, score, weight, kept, entropy,
        loss (null where the token was not predicted).

        Raises:
            DataError: it cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with replacing(path) as incomplete:
                groups = row_groups(self, {FORMAT: json.dumps(self._about()).encode()})
                first = next(groups)
                repeated: Any = [name for name in first.column_names if name not in NUMBERS]
                options: Any = {"compression": "zstd", "use_dictionary": repeated, "write_page_checksum": True}
                with pq.ParquetWriter(incomplete, first.schema, **options) as writer:
                    for group in chain([first], groups):
                        writer.write_table(group)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be written: {_reason(error)}; choose another folder") from error

    @classmethod
    def read(cls, path: Path, *, fingerprint: str | None = None) -> "RoutingTable":
        """What :meth:`write` wrote.

        Args:
            fingerprint: of the model that the table must come from.

        Raises:
            DataError: the file is missing, damaged, no such table, or another model's.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                metadata = (file.schema_arrow.metadata or {}).get(FORMAT)
                if metadata is None:
                    raise DataError(f"{path} is no routing table; give a file that moepp analyze wrote")
                about = json.loads(metadata)
                if about["version"] != _VERSION:
                    raise DataError(
                        f"{path} has version {about['version']} of the format, not {_VERSION}; make it again"
                    )
                facts = Facts(**about["facts"])
                if fingerprint is not None and facts.fingerprint != fingerprint:
                    raise DataError(
                        f"{path} comes from another model, {facts.model!r} ({_short(facts.fingerprint)}, not "
                        f"{_short(fingerprint)}); give that model's table, or leave it out to make one"
                    )
                layout = ExpertLayout(**about["layout"])
                vocabulary = {int(token): str(text) for token, text in about["vocabulary"]}
                documents = tuple(Document(*entry) for entry in about["documents"])
                arrays = read_columns(file, *about["shape"])
                if not set(np.unique(arrays["token"]).tolist()) <= vocabulary.keys():
                    raise ValueError("tokens without a text")
                if arrays["expert"].max() > layout.num_experts or arrays["document"].max() >= len(documents):
                    raise ValueError("experts or documents that do not exist")
                return cls(layout=layout, vocabulary=vocabulary, documents=documents, facts=facts, **arrays)
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist; give a file that moepp analyze wrote") from error
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is damaged ({_reason(error)}); make the table again") from error

    @classmethod
    def is_in(cls, path: Path) -> bool:
        """Whether a file is a routing table, as far as its head tells."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return FORMAT in (pq.read_schema(path).metadata or {})
        except (OSError, pa.ArrowException):
            return False

    def _about(self) -> dict[str, Any]:
        """What is not a column."""
        return {
            "version": _VERSION,
            "shape": self.expert.shape,
            "layout": dataclasses.asdict(self.layout),
            "documents": [[document.name, document.source] for document in self.documents],
            "vocabulary": [[token, text] for token, text in self.vocabulary.items()],
            "facts": dataclasses.asdict(self.facts),
        }


def expert_dtype(layout: ExpertLayout) -> type[np.unsignedinteger]:
    """The smallest type for an expert's id, ``layout.num_experts`` included."""
    return np.uint8 if layout.num_experts < 1 << 8 else np.uint16


def _short(fingerprint: str) -> str:
    return f"fingerprint {fingerprint[:12]}" if fingerprint else "no fingerprint"


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else first_line(error)  # Arrow wraps what the system says in more words
