"""Tables A and B: parts of one layer of the paper's size, timed in turns; nothing is trained."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from moepp.bench import Case, Row, layer_config
from moepp.bench.paper import MILLISECONDS, TOKENS
from moepp.errors import BackendUnavailable

from .lab import Lab
from .paired import Paired
from .result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DTYPES = (torch.float32, torch.bfloat16)
ROUNDS = 30
SECONDS = 12.0
"""For each dtype; slow machines stop after five rounds."""

Times = Mapping[str, Mapping[str, Row]]
"""By dtype and variant."""


def layer_times(lab: Lab, benchmark: str, measure: Callable[..., list[Row]], names: list[str]) -> Times:
    """What ``moepp bench BENCHMARK --paper`` measures, at the scale's size of layer.

    Raises:
        BackendUnavailable: a result was wrong, so its time would mean nothing.
    """
    found = {}
    for dtype in DTYPES:
        case = Case(
            benchmark=benchmark,
            size=lab.scale.layer,
            config=layer_config(lab.scale.layer),
            dtype=dtype,
            device=lab.device,
            tokens=TOKENS,
            routing="synthetic",
        )
        rows = {row.variant: row for row in measure(case, rounds=ROUNDS, budget=SECONDS) if row.variant in names}
        for row in rows.values():
            if row.reason is not None:
                raise BackendUnavailable(f"{row.variant} in {case.dtype_name}: {row.reason}")
        found[case.dtype_name] = rows
    return found


def milliseconds(row: Row) -> str:
    """Median and distance between quartiles."""
    median, iqr = _ms(row)
    return f"{median:.4g} ± {iqr:.1g}"


def _ms(row: Row) -> tuple[float, float]:
    assert row.median_s is not None
    assert row.iqr_s is not None
    return 1e3 * row.median_s, 1e3 * row.iqr_s


def numbers(times: Times) -> dict[str, dict[str, dict[str, float]]]:
    """By dtype and variant: median and distance between quartiles in milliseconds."""
    return {
        dtype: {name: dict(zip(("ms", "iqr_ms"), _ms(row), strict=True)) for name, row in rows.items()}
        for dtype, rows in times.items()
    }


def ratio(part: Mapping[str, float], whole: Mapping[str, float]) -> Paired:
    """Of two medians, and how far half of both quartile distances moves it to either side."""
    found = part["ms"] / whole["ms"]
    half = found * math.hypot(*(one["iqr_ms"] / 2 / one["ms"] for one in (part, whole)))
    return Paired(found, found - half, found + half, (found,))


def draw_times(found: Result, figure: "Figure", labels: Mapping[str, str]) -> None:
    """Milliseconds by part, with the paper's beside them; the scale is logarithmic, as parts are decades apart."""
    from .plots import COLOURS

    axes = figure.subplots()
    rows = range(len(labels))
    for (dtype, one), colour, mark, shift in zip(found.data.items(), COLOURS, "os", (-0.15, 0.0), strict=False):
        ours = [one[name] for name in labels]
        spread = [part["iqr_ms"] / 2 for part in ours]
        axes.errorbar([part["ms"] for part in ours], [row + shift for row in rows], xerr=spread, fmt=mark, color=colour,
                      capsize=3, label=dtype)  # fmt: skip
    axes.plot([MILLISECONDS[name] for name in labels], [row + 0.15 for row in rows], "D", color="#666666",
              label="the paper's, on an A100")  # fmt: skip
    axes.set_yticks(rows, list(labels.values()))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel(f"milliseconds for {TOKENS:,} tokens")
    figure.legend(loc="outside upper center", ncols=3)
