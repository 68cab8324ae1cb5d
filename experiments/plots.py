"""Drawings of results, as SVG. The only module here that loads matplotlib by itself.

An experiment's ``draw(result, figure)`` adds axes with units to an empty figure, in moepp's colours.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from moepp.analyze.plots import COLOURS

from .result import Result

__all__ = ["COLOURS", "save"]

_STYLE = {
    "svg.hashsalt": "moepp",  # the same figure gives the same bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def save(result: Result, draw: Callable[[Result, Figure], None], path: Path) -> None:
    """Writes the drawing; on white, so that it can be read on a dark page too."""
    with mpl.rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        draw(result, figure)
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
