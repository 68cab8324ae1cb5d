"""Classes of tokens, by their text and by what stands beside them.

T tokens.
"""

import keyword
import re
from collections.abc import Mapping, Sequence

import numpy as np

from moepp.analyze import RoutingTable
from moepp.config import ExpertType

CLASSES = ("white space", "punctuation", "number", "single letter", "keyword", "whole word", "word fragment")
_SPACE, _PUNCTUATION, _NUMBER, _LETTER, _KEYWORD, _WORD, _FRAGMENT = range(len(CLASSES))
_BYTES = re.compile(r"(\\x[0-9a-f]{2})+")
"""Bytes that are no character alone, as :class:`RoutingTable` writes them."""


def classes(table: RoutingTable) -> np.ndarray:
    """(T,) the index in ``CLASSES`` of each occurrence.

    A fragment touches another token's letter: ``de`` + ``code``. The parts of ``max_tokens`` are whole words. A
    single letter is one inside of a word too. Keywords are Python's, in prose as well.
    """
    ids, place = np.unique(table.token, return_inverse=True)
    texts = [table.vocabulary[token] for token in ids.tolist()]
    kind = np.array([*map(_of_type, texts)])[place]
    begins = np.array([text[:1].isalpha() for text in texts])[place]
    ends = np.array([text[-1:].isalpha() for text in texts])[place]
    same = table.document[1:] == table.document[:-1]
    joined = ends[:-1] & begins[1:] & same
    fragment = np.zeros(len(kind), bool)
    fragment[1:] |= joined
    fragment[:-1] |= joined
    return np.where(fragment & ((kind == _WORD) | (kind == _KEYWORD)), _FRAGMENT, kind)


def _of_type(text: str) -> int:
    core = text.strip()
    if not core:
        return _SPACE
    if _BYTES.fullmatch(core) or not any(map(str.isalnum, core)):
        return _PUNCTUATION
    if not any(map(str.isalpha, core)):
        return _NUMBER
    if len(core) == 1:
        return _LETTER
    return _KEYWORD if core in keyword.kwlist else _WORD


def counts(table: RoutingTable) -> dict[str, int]:
    """Tokens of each class that occurs."""
    found = np.bincount(classes(table), minlength=len(CLASSES)).tolist()
    return {name: count for name, count in zip(CLASSES, found, strict=True) if count}


def by_class(table: RoutingTable, kind: ExpertType, source: str | None = None) -> dict[str, float]:
    """Experts of one type per token and layer, by class of token.

    Args:
        source: of this source's tokens alone.
    """
    values, member = table.active(kind).mean(axis=-1, dtype=np.float64), classes(table)
    if source is not None:
        here = table.source == table.sources.index(source)
        values, member = values[here], member[here]
    return {name: float(values[member == index].mean()) for index, name in enumerate(CLASSES) if index in member}


def contrast(
    tables: Mapping[int, RoutingTable], kind: ExpertType, ours: Sequence[str], theirs: Sequence[str]
) -> dict[int, float]:
    """By seed, the experts of one type per token and layer of some classes less those of others."""
    found = {}
    for seed, table in tables.items():
        values, names = table.active(kind).mean(axis=-1, dtype=np.float64), np.array(CLASSES)[classes(table)]
        one, other = (values[np.isin(names, group)] for group in (ours, theirs))
        assert len(one), ours
        assert len(other), theirs
        found[seed] = float(one.mean() - other.mean())
    return found


def shown(text: str) -> str:
    """A token that can be read: a space as ␣, what has no shape as Python writes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text).replace(" ", "␣")


def code(text: str) -> str:
    """The same as code in Markdown, where symbols stay what they are."""
    return f"`` {shown(text)} ``" if "`" in text else f"`{shown(text)}`"
