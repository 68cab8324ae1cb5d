"""What a benchmark says: one :class:`Row` per variant, and the JSON file that holds them.

A file is ``{"machine": …, "versions": …, "command": …, "rows": […]}``. A value that wasn't measured is null.
"""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from .. import __version__
from ..errors import DataError
from ..files import readable, save_text
from .method import machine

R = TypeVar("R")
Pass = Literal["forward", "forward+backward", "decode", "training", "generation", "loading"]
VERSIONS_OF = ("transformers", "lm_eval", "triton", "scattermoe", "megablocks", "sonic-moe", "torchao")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant of one benchmark. In JSON, ``pass_`` is called ``pass``."""

    benchmark: str
    variant: str
    """Who and how: ``moepp:onednn``, ``vanilla:onednn``, ``transformers:grouped_mm``."""
    pass_: Pass
    size: str
    dtype: str
    """``float32``, ``bfloat16``: torch's name."""
    device: str
    threads: int | None
    """Of the CPU; None on a GPU."""
    tokens: int
    tau: float | None = None
    """None for what has no zero-computation experts."""
    routing: Literal["synthetic", "learned", "untrained"] | None = None
    """Synthetic: every expert has exactly the share of tau's balance. Learned: a trained model's. Untrained: what fresh
    weights choose. None where nothing is routed, or by a model whose router is not ours."""
    median_s: float | None = None
    """Of one pass through one layer, or through the whole model where the benchmark is of that."""
    iqr_s: float | None = None
    tokens_per_s: float | None = None
    fraction_of_peak: float | None = None
    """FLOPs of the FFN experts that really ran, over time, over the best dense matrix product of the same run."""
    speedup_over: dict[str, float] = field(default_factory=dict)
    """Variant -> its median over this one's, in the same run."""
    bound: float | None = None
    """Table 1 at the routing that was run: the vanilla twin's FFN assignments over this one's."""
    fraction_of_bound: float | None = None
    """The speed-up over the vanilla twin, over ``bound``."""
    max_relative_error: float | None = None
    """Largest deviation from the backend ``reference`` on the same tensors, over the reference's largest element."""

    # Beyond the fields that every benchmark shares:
    fraction_of_bandwidth: float | None = None
    """Decoding: bytes of the experts' weights that were touched, over time, over the memory-read rate of the run."""
    share_of_layer: float | None = None
    """Router benchmark: this part's time over the whole layer's, in the same rounds."""
    peak_memory_bytes: int | None = None
    batch: int | None = None
    """Whole models: sequences side by side."""
    ffn_per_token: float | None = None
    """Whole models: FFN experts that a token went through, the mean over layers."""
    flops: int | None = None
    """Table B: of the router, counted as the paper does."""
    reason: str | None = None
    """Why nothing was measured, where the times are null."""

    def to_json(self) -> dict[str, Any]:
        """The row as it stands in a file."""
        values = {("pass" if key == "pass_" else key): value for key, value in asdict(self).items()}
        return values | {"speedup_over": self.speedup_over or None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Row":
        """The inverse of :meth:`to_json`; TypeError for fields that no row has."""
        fields = {("pass_" if key == "pass" else key): value for key, value in values.items()}
        fields["speedup_over"] = values["speedup_over"] or {}
        return cls(**fields)


@dataclass(frozen=True)
class Results:
    """The rows of one command on one machine."""

    machine: dict[str, Any]
    versions: dict[str, str]
    command: str
    rows: Sequence[Row]

    @classmethod
    def here(cls, command: str, rows: Sequence[Row]) -> "Results":
        """Rows that were measured just now, on this machine, by this command."""
        return cls(machine(), versions(), command, rows)

    def write(self, path: Path) -> None:
        """Writes the JSON file."""
        content = {"machine": self.machine, "versions": self.versions, "command": self.command}
        write_results(path, content, [row.to_json() for row in self.rows])

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Reads what :meth:`write` wrote.

        Raises:
            DataError: the file is not of that kind.
        """
        try:
            return cls(*read_results(path, Row.from_json))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} holds no benchmark results: {error}; write it with `moepp bench … --json`"
            ) from error


def write_results(path: Path, content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a file of numbers, one row a line: :func:`facts` or the like of them, and the rows.

    Raises:
        DataError: it cannot be written.
    """
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    head = json.dumps(content, indent=1)[:-2]
    save_text(path, f'{head},\n "rows": [\n{lines}\n ]\n}}\n')


def read_results(path: Path, row_of: Callable[[Any], R]) -> tuple[dict[str, Any], dict[str, str], str, list[R]]:
    """Machine, versions, command and rows of what :func:`write_results` wrote.

    Raises:
        ValueError, KeyError, TypeError: the file is not of that kind.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["machine"], content["versions"], content["command"], [row_of(row) for row in content["rows"]]


def facts() -> dict[str, Any]:
    """What every file of numbers says of where they come from: ``machine``, ``versions`` and ``command``."""
    return {"machine": machine(), "versions": versions(), "command": command()}


def command() -> str:
    """The one that is running, as it was typed."""
    return readable(shlex.join(["moepp", *sys.argv[1:]]))


def versions() -> dict[str, str]:
    """Of moepp, torch and those peers and helpers that are installed."""
    found = {"moepp": __version__, "torch": torch.__version__}
    for name in VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
