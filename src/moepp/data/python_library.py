"""The corpus every machine has: the standard library of the running interpreter, as prose, code and tests.

Three sources that differ in what a token is worth: ``prose`` is the docstrings of library modules and the topics of
``pydoc``; ``code`` is library code without its docstrings; ``tests`` is test code without its docstrings. Comments and
formatting stay.

What is held out is decided by *module group* before anything is extracted: ``json``, ``_json``, ``test_json`` and
everything below them go to the same side, in all three sources, so a validation text was never seen as another
source's training text. Text that both sides have anyway (a repeated one-line docstring, a boilerplate ``__main__``)
is dropped from validation.
"""

import ast
import gc
import importlib.util
import inspect
import logging
import os
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from .hashing import unit_hash

Part = Literal["prose", "code", "tests"]
Split = Literal["train", "validation"]

_log = logging.getLogger("moepp.data")

# Groups differ in size a hundredfold, so the salt is chosen: at the default fraction each source holds out 4 to 6 % of
# its bytes on CPython 3.11, and no group that a later version removed is among those held out.
_SALT = "moepp-731"
_TEST_FOLDERS = {"test", "tests", "idle_test"}
# Character tables written by a generator, and this machine's build settings: no text to learn from.
_GENERATED = re.compile(rb"generated from '.*' with gencodec\.py|^# system configuration generated", re.MULTILINE)
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class PythonLibrary:
    """Documents by source and split, in an order that depends on their paths only.

    Attributes:
        documents: ``documents[part][split]`` is a list of texts.
        modules: files read.
        skipped: files left out because this interpreter cannot parse them.
    """

    documents: dict[Part, dict[Split, list[str]]] = field(
        default_factory=lambda: {part: {"train": [], "validation": []} for part in ("prose", "code", "tests")}
    )
    modules: int = 0
    skipped: int = 0


@lru_cache(maxsize=2)
def load_python_library(root: str | None = None, validation_fraction: float = 0.05) -> PythonLibrary:
    """Read every module below ``root``: seconds for the whole library, then cached. Do not modify the result.

    Args:
        root: folder of the library; the running interpreter's when ``None``.
        validation_fraction: share of module groups that is held out, in [0, 1).
    """
    folder = _folder(root)
    held_out: list[tuple[str, ...]] = []
    training: list[tuple[str, ...]] = []
    for names in _module_names(folder):
        (held_out if _is_held_out(names, validation_fraction) else training).append(names)
    library = PythonLibrary()
    seen: set[str] = set()  # training first: what repeats is dropped from validation
    splits: list[tuple[Split, list[tuple[str, ...]]]] = [("train", training), ("validation", held_out)]
    with _no_garbage_collection():
        for split, modules in splits:
            for names in modules:
                for part, text in _read(folder, names, library, seen):
                    library.documents[part][split].append(text)
    _log.info("python library: %d modules read, %d skipped: they do not parse", library.modules, library.skipped)
    return library


class Function(NamedTuple):
    """A function or method with a docstring."""

    module: str
    name: str
    code: str
    """From ``def`` on, without docstrings and the indentation of what it stands in."""
    docstring: str


def load_held_out_functions(root: str | None = None, validation_fraction: float = 0.05) -> list[Function]:
    """The documented functions of the library modules that :func:`load_python_library` holds out; under a second."""
    folder = _folder(root)
    found: list[Function] = []
    for names in _module_names(folder):
        parsed = None
        if _is_held_out(names, validation_fraction) and not _is_test(names):
            parsed = _parse(folder.joinpath(*names).with_suffix(".py").read_bytes())
        if parsed is None:
            continue
        text, tree = parsed
        lines = text.split("\n")
        for node in _documented(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
                if (alone := _parse(code.encode())) is not None:  # what a string in it kept from being dedented is not
                    code = _without_docstrings(code, list(_documented(alone[1])))
                    found.append(Function(".".join(names), node.name, code, inspect.cleandoc(_docstring(node))))
    return found


def _folder(root: str | None) -> Path:
    return Path(root or sysconfig.get_path("stdlib"))


def _is_held_out(names: tuple[str, ...], validation_fraction: float) -> bool:
    return unit_hash(_group(names), _SALT) < validation_fraction


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Parsing makes millions of objects and no cycles; looking for cycles would double its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _module_names(folder: Path) -> list[tuple[str, ...]]:
    """Dotted names of all modules, in the order of a hash: the first few megabytes are then a fair sample."""
    found = []
    for path, folders, files in os.walk(folder):
        # Packages have names that can be imported, which site-packages and the build's config-3.x folder do not.
        folders[:] = [name for name in folders if name.isidentifier() and name != "__pycache__"]
        parents = Path(path).relative_to(folder).parts
        stems = [file.removesuffix(".py") for file in files if file.endswith(".py")]
        found += [(*parents, stem) for stem in stems if stem.isidentifier()]
    return sorted(found, key=lambda names: (unit_hash(".".join(names), _SALT), names))


def _group(names: tuple[str, ...]) -> str:
    """What a module is about: the first word of its top-level name, and for a test of what it tests.

    ``json.decoder``, ``_json`` and ``test.test_json.test_decode`` are about json, ``_pydecimal`` about decimal, and
    ``test.test_xml_etree`` about xml.
    """
    top, *below = names
    subject = below[0] if top == "test" and below else top
    bare = re.sub(r"^(_py_?|_*(test_+)?_*)", "", subject)
    return bare.split("_")[0] or subject


def _is_test(names: tuple[str, ...]) -> bool:
    return not _TEST_FOLDERS.isdisjoint(names[:-1])


def _read(folder: Path, names: tuple[str, ...], library: PythonLibrary, seen: set[str]) -> Iterator[tuple[Part, str]]:
    """The texts of one module that were not seen before."""
    source = folder.joinpath(*names).with_suffix(".py").read_bytes()
    if _GENERATED.search(source[:2000]):
        return
    parsed = _parse(source)
    if parsed is None:
        library.skipped += 1
        return
    text, tree = parsed
    library.modules += 1
    if names[0] == "pydoc_data":
        yield from _unseen("prose", _topics(tree), seen)
        return
    documented = list(_documented(tree))
    if _is_test(names):
        yield from _unseen("tests", [_without_docstrings(text, documented)], seen)
        return
    yield from _unseen("code", [_without_docstrings(text, documented)], seen)
    docstrings = [inspect.cleandoc(_docstring(node)) for node in documented]
    prose = "\n\n".join(docstring for _, docstring in _unseen("prose", docstrings, seen))
    if prose:
        yield "prose", prose + "\n"


def _parse(source: bytes) -> tuple[str, ast.Module] | None:
    """A module's text and tree; None where it cannot be parsed: a test suite has files to break parsers."""
    try:
        with warnings.catch_warnings():  # old test files use escapes that the parser warns about
            warnings.simplefilter("ignore")
            text = importlib.util.decode_source(source)
            return text, ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _unseen(part: Part, texts: list[str], seen: set[str]) -> Iterator[tuple[Part, str]]:
    for text in texts:
        if text.strip() and text not in seen:
            seen.add(text)
            yield part, text


def _topics(tree: ast.Module) -> list[str]:
    """The values of ``topics = {...}``; nothing for the package's ``__init__``."""
    values = [node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)]
    return [topic for value in values for topic in ast.literal_eval(value).values()]


def _documented(node: ast.AST) -> Iterator[_Documented]:
    """Every module, class and function with a docstring. Statements only: expressions hold most of a tree's nodes."""
    if isinstance(node, _Documented) and _docstring(node):
        yield node
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, block, ()):
            if hasattr(child, "body"):
                yield from _documented(child)


def _docstring(node: _Documented) -> str:
    """Its docstring, or an empty string."""
    first = node.body[0] if node.body else None
    constant = first.value if isinstance(first, ast.Expr) else None
    return constant.value if isinstance(constant, ast.Constant) and isinstance(constant.value, str) else ""


def _without_docstrings(text: str, documented: list[_Documented]) -> str:
    """Cut the docstrings out by position; ``pass`` stands in where a body would become empty or share the line."""
    lines = text.encode().split(b"\n")  # the tree counts columns in UTF-8 bytes, and only "\n" ends a line
    for node in reversed(documented):  # from the end: earlier positions stay valid
        docstring = node.body[0]
        first, last = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
        before, after = lines[first][: docstring.col_offset], lines[last - 1][docstring.end_col_offset :]
        alone = not before.strip() and not after.strip()
        if alone and (len(node.body) > 1 or isinstance(node, ast.Module)):
            lines[first:last] = []
        else:
            lines[first:last] = [before + b"pass" + after]
    return b"\n".join(lines).decode()
