"""Questions about the standard library's held-out modules; what is left to choice in them is chosen by hash.

A score should say what a model understood, not what it remembers or can count:

- nothing that is asked for stands in the training split, and only held-out modules are asked about;
- wrong answers are other items' right ones, within a quarter of the right one's length;
- a function's name is hidden, because its words tend to stand in its summary;
- the names to choose from have all just been used, so that having been seen tells nothing.

Contexts are short enough for a model of 256 tokens, and cut from the left.
"""

import builtins
import io
import keyword
import re
import tokenize
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict

from ..data import Function, unit_hash

CONTEXT = 400  # characters
CHOICES = 4
LENGTHS = 0.25  # how much longer or shorter than the right answer a wrong one may be
MOST_ITEMS = 400

_BOUNDARY = re.compile(r"(?<=\w)(?=\W)|(?<=\W)(?=\w)")
_PYTHONS_OWN = {*keyword.kwlist, *dir(builtins), "self"}


class Item(TypedDict):
    """One question."""

    context: str
    choices: list[str]
    label: int
    """The index of the right choice."""
    target: str
    """The right choice."""


def summary_items(functions: Iterable[Function], training: Iterable[str]) -> list[Item]:
    """Which of four summaries belongs to this function?

    Args:
        functions: held out.
        training: the training split's prose.
    """
    known = _one_line(" ".join(training))
    of: dict[str, Function] = {}
    for function in functions:
        summary = _one_line(function.docstring.split("\n\n")[0])
        if 20 <= len(summary) <= 120 and summary not in known:
            of.setdefault(summary, function)
    items = []
    for summary, function in of.items():
        code = re.sub(rf"\b{re.escape(function.name)}\b", "function", function.code).strip()
        items.append(_item(f"{code[-CONTEXT:]}\n\n# ", summary, of))
    return _chosen(items)


def line_items(documents: Iterable[str], training: Iterable[str]) -> list[Item]:
    """Which of four is the rest of this line?

    Args:
        documents: held-out code.
        training: the training split's code, tests included: lines that stand there are not asked for.
    """
    known = {line.strip() for document in training for line in document.split("\n")}
    halves: dict[str, str] = {}  # the rest of a line -> what stands before it
    for document in documents:
        start = 0
        for line in document.split("\n"):
            bare = line.strip()
            if start > CONTEXT // 2 and 24 <= len(bare) <= 80 and "#" not in line and bare not in known:
                cut = _BOUNDARY.search(line, len(line) - len(line.lstrip()) + len(bare) // 3)
                if cut and len(rest := line[_before_space(line, cut.start()) :].rstrip()) >= 12:
                    before = start + _before_space(line, cut.start())
                    halves.setdefault(rest, document[max(0, before - CONTEXT) : before])
            start += len(line) + 1
    return _chosen(
        _item(context, rest, halves, lambda other, rest=rest: other.startswith(" ") == rest.startswith(" "))
        for rest, context in sorted(halves.items(), key=lambda half: unit_hash(half[0]))
    )


def name_items(documents: Iterable[str]) -> list[Item]:
    """Which of four names, all of which the code has just used, comes next?

    Args:
        documents: held-out code.
    """
    places = []
    for document in documents:
        names = list(_names(document))
        for index, (start, name) in enumerate(names):
            first = bisect_left(names, (start - CONTEXT, ""))
            used = dict.fromkeys(other for _, other in names[first:index])
            if start >= CONTEXT + 1 and name in used:
                places.append((document, start, name, list(used)))
    places.sort(key=lambda place: unit_hash(place[0][place[1] - CONTEXT : place[1]] + place[2]))
    return _chosen(_name_item(*place) for place in places)


def _names(document: str) -> Iterator[tuple[int, str]]:
    """Every identifier of at least four letters with its place; names that Python itself has are none."""
    starts = [0]
    for line in document.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    for token in tokenize.generate_tokens(io.StringIO(document).readline):
        if token.type == tokenize.NAME and len(token.string) >= 4 and token.string not in _PYTHONS_OWN:
            row, column = token.start
            yield starts[row - 1] + column, token.string


def _name_item(document: str, start: int, name: str, used: list[str]) -> Item | None:
    before = _before_space(document, start)
    space = document[before:start]
    others = [space + other for other in used if other not in name and name not in other]
    return _item(document[before - CONTEXT : before], space + name, others, tolerance=2 * LENGTHS)


def _item(
    context: str,
    right: str,
    others: Iterable[str],
    fits: Callable[[str], bool] = lambda other: True,
    tolerance: float = LENGTHS,
) -> Item | None:
    """The question with wrong answers of about the right one's length; None where there are too few."""
    near = [o for o in others if o != right and abs(len(o) - len(right)) <= tolerance * len(right) and fits(o)]
    if len(near) < CHOICES - 1:
        return None
    salt = context + right
    wrong = sorted(near, key=lambda other: unit_hash(other, salt))[: CHOICES - 1]
    choices = sorted([right, *wrong], key=lambda choice: unit_hash(choice, "order" + salt))
    return Item(context=context, choices=choices, label=choices.index(right), target=right)


def _chosen(items: Iterable[Item | None]) -> list[Item]:
    found: list[Item] = []
    for item in items:
        if item is not None:
            found.append(item)
        if len(found) == MOST_ITEMS:
            break
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _before_space(text: str, position: int) -> int:
    """One less after a space, which tokenizers take with the word that follows it."""
    return position - (text[position - 1] == " ")
