"""From documents to windows of tokens, and from token ids back to something readable."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..data import encode
from ..errors import ConfigError, DataError
from .routing_table import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHARACTERS = 16  # in a token, on average, hardly more: of a long document no more is read, if that is enough
_SPACE = "\u2581"  # SentencePiece's
_DAMAGED = "\N{REPLACEMENT CHARACTER}"


class Text(NamedTuple):
    """A document to look at."""

    name: str
    source: str
    text: str


@dataclass(frozen=True)
class Encoded:
    """Documents as tokens, one after another."""

    documents: tuple[Document, ...]
    ids: tuple[np.ndarray, ...]
    """Of each document, int32 and not empty."""

    @property
    def hash(self) -> str:
        """sha256 of the tokens, and where documents begin."""
        state = hashlib.sha256()
        for ids in self.ids:
            state.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())
        return state.hexdigest()

    def spans(self, window: int) -> list[tuple[int, int]]:
        """Where each window begins and ends, counted through all documents; none reaches from one into the next."""
        spans, start = [], 0
        for ids in self.ids:
            end = start + len(ids)
            spans += [(first, min(first + window, end)) for first in range(start, end, window)]
            start = end
        return spans


def encode_texts(texts: Iterable[Text], tokenizer: "PreTrainedTokenizerBase", max_tokens: int | None = None) -> Encoded:
    """The tokens of the texts, without any between them; with ``max_tokens``, the first of each source, in equal parts.

    A source that has less than its part leaves the rest to the others.

    Raises:
        DataError: there are none.
    """
    sizes: dict[str, int] = {}
    read: list[tuple[Document, np.ndarray]] = []
    for name, source, text in texts:
        size = sizes.setdefault(source, 0)
        if max_tokens is not None and size >= max_tokens:
            continue
        ids = _first_ids(text, tokenizer, max_tokens)
        sizes[source] += len(ids)
        read.append((Document(name, source), ids))
    room = dict(zip(sizes, _parts([*sizes.values()], max_tokens), strict=True))
    documents, taken = [], []
    for document, ids in read:
        ids = ids[: room[document.source]]
        room[document.source] -= len(ids)
        if len(ids):
            documents.append(document)
            taken.append(ids)
    if not taken:
        raise DataError("the text holds no tokens; give a file with text in it")
    return Encoded(tuple(documents), tuple(taken))


def _first_ids(text: str, tokenizer: "PreTrainedTokenizerBase", wanted: int | None) -> np.ndarray:
    """A document's tokens: all, or of a long one as many as are wanted and more."""
    characters = len(text) if wanted is None else _CHARACTERS * wanted
    while True:
        ids = encode([text[:characters]], tokenizer)[:-1].astype(np.int32)
        if characters >= len(text) or (wanted is not None and len(ids) > wanted):  # the last may be a token cut in two
            return ids
        characters *= 2


def check_window(encoded: Encoded, window: int | None, context: int) -> int:
    """The window, by default the model's context, at most the longest document.

    Raises:
        ConfigError: the model cannot see so many tokens at once.
        DataError: no document has so many.
    """
    longest = max(map(len, encoded.ids))
    if window is None:
        return min(context, longest)
    require_context(window, context)
    if longest < window:
        raise DataError(
            f"--window={window} is more than the {longest} tokens of the longest document; lower it, leave it out, or "
            "give more text"
        )
    return window


def require_context(window: int, context: int) -> None:
    """Raises ConfigError for a window that the model cannot see at once."""
    if not 1 <= window <= context:
        raise ConfigError(f"--window={window} is outside [1, {context}], the model's context; lower it")


def token_texts(tokenizer: "PreTrainedTokenizerBase", ids: Iterable[int]) -> dict[int, str]:
    r"""What each token stands for, its spaces included; bytes that are no character alone read ``\xe2\x80``."""
    texts = {}
    for token in ids:
        name = str(tokenizer.convert_ids_to_tokens(token))
        text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
        if _DAMAGED in text:
            data = _bytes_of(name)
            text = name if data is None else data.decode("utf-8", "backslashreplace")
        else:  # SentencePiece drops the first space of a text's first token
            text = " " * (_leading(_SPACE, name) - _leading(" ", text)) + text
        texts[token] = text
    return texts


def _leading(character: str, text: str) -> int:
    return len(text) - len(text.lstrip(character))


def _parts(sizes: Sequence[int], budget: int | None) -> list[int]:
    """The budget in parts as equal as the sizes allow."""
    if budget is None:
        return list(sizes)
    parts = [0] * len(sizes)
    smallest_first = sorted(range(len(sizes)), key=lambda index: sizes[index])
    for done, index in enumerate(smallest_first):
        parts[index] = min(sizes[index], budget // (len(sizes) - done))
        budget -= parts[index]
    return parts


def _bytes_of(token: str) -> bytes | None:
    """A byte-level token's bytes; None for a token of another kind.

    Such tokenizers write each byte as a character: the printable ones as themselves, the others, in order, from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    return bytes(byte_of[c] for c in token) if all(c in byte_of for c in token) else None
