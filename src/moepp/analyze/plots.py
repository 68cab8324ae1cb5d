"""Figures as SVG text, each in a light and a dark version. The only module here that imports matplotlib.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TYPE_COLOURS = {"ffn": "#0072B2", "constant": "#E69F00", "copy": "#009E73", "zero": "#999999"}
_INK = {"light": "#1f2328", "dark": "#e6edf3"}

Series = tuple[Sequence[float], Sequence[float]]


def loss_curves(training: Mapping[str, Series], validation: Mapping[str, Series]) -> dict[str, str]:
    """Training loss as lines and validation loss as points, by model, over steps."""

    def draw(axes: Axes) -> None:
        for colour, name in zip(COLOURS, training, strict=False):
            axes.plot(*training[name], color=colour, label=f"{name}, training", linewidth=1.4)
            if name in validation:
                axes.plot(*validation[name], "o", color=colour, label=f"{name}, validation", markersize=5)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("loss (nats per token)")
        _legend(axes)

    return _render(draw, size=(7.2, 3.6))


def lines_over_steps(series: Mapping[str, Series], *, label: str, targets: Mapping[str, float]) -> dict[str, str]:
    """One quantity by model over steps, with the value each aims at as a dashed line."""

    def draw(axes: Axes) -> None:
        for colour, name in zip(COLOURS, series, strict=False):
            axes.plot(*series[name], color=colour, label=name, linewidth=1.4)
            if name in targets:
                axes.axhline(targets[name], color=colour, linestyle="--", linewidth=1, label=f"{name}, aimed at")
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        _legend(axes)

    return _render(draw, size=(7.2, 3.0))


def expert_load(loads: Sequence[Sequence[float]], names: Sequence[str], types: Sequence[str]) -> dict[str, str]:
    """Share of each layer's choices by expert: one row of bars a layer, coloured by expert type."""

    def draw_row(axes: Axes, layer: int) -> None:
        colours = [TYPE_COLOURS[kind] for kind in types]
        axes.bar(range(len(names)), [100 * value for value in loads[layer]], color=colours)
        axes.set_ylabel(f"layer {layer}\n% of choices")
        axes.set_ylim(0, 105 * max(max(row) for row in loads))
        axes.set_xticks(range(len(names)), names if layer == len(loads) - 1 else [""] * len(names), rotation=45)

    return _render(draw_row, size=(7.2, 1.1 * len(loads) + 0.9), rows=len(loads))


def ffn_per_token(layers: Mapping[str, Sequence[float]], targets: Mapping[str, float]) -> dict[str, str]:
    """FFN experts per token in each layer, by model, with the aim as a dashed line."""

    def draw(axes: Axes) -> None:
        width = 0.8 / len(layers)
        for index, (colour, name) in enumerate(zip(COLOURS, layers, strict=False)):
            values = layers[name]
            places = [layer + (index - (len(layers) - 1) / 2) * width for layer in range(len(values))]
            axes.bar(places, values, width=width, color=colour, label=name)
            if name in targets:
                axes.axhline(targets[name], color=colour, linestyle="--", linewidth=1, label=f"{name}, aimed at")
            axes.set_xticks(range(len(values)))
        axes.set_xlabel("layer")
        axes.set_ylabel("FFN experts per token")
        _legend(axes)

    return _render(draw, size=(7.2, 3.0))


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        borderaxespad=0,
        handlelength=1.4,
    )


def _render(draw: Callable[..., None], *, size: tuple[float, float], rows: int = 1) -> dict[str, str]:
    return {theme: _svg(draw, size, rows, theme) for theme in _INK}


def _svg(draw: Callable[..., None], size: tuple[float, float], rows: int, theme: str) -> str:
    ink = _INK[theme]
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
        "svg.hashsalt": "moepp",  # the same figure gives the same bytes
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        canvas = Canvas(figsize=size, layout="constrained")
        all_axes = canvas.subplots(rows, 1, squeeze=False)[:, 0]
        for index, axes in enumerate(all_axes):
            draw(axes) if rows == 1 else draw(axes, index)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Fixed points make a page scroll sideways on a phone; the view box alone scales.
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", svg, count=1)
