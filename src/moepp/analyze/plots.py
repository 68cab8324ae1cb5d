"""Drawings. The only module here that imports matplotlib.

For the demo's page: SVG text in a light and a dark version. For papers: drawings of :class:`Summary`, which ``save``
writes as PNG and SVG. Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ..config import EXPERT_TYPES, ExpertType
from .summary import Summary
from .tables import TokenTypes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TYPE_COLOURS = {"ffn": "#0072B2", "constant": "#E69F00", "copy": "#009E73", "zero": "#999999"}
ENDINGS = (".png", ".svg")
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
    # Text stays text: small, selectable, in the page's font.
    with mpl.rc_context(_settings(_INK[theme], **{"svg.fonttype": "none"})):
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


def _settings(ink: str, **more: str) -> dict[Any, Any]:
    return more | {
        "svg.hashsalt": "moepp",  # the same figure gives the same bytes
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": ink,
        "text.parse_math": False,  # a token may be a dollar
        "axes.labelcolor": ink,
        "axes.edgecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }


def save(draw: Callable[[Canvas], None], path: Path) -> list[Path]:
    """Writes ``path`` with the endings png (300 dpi) and svg, on white."""
    paths = [path.with_suffix(ending) for ending in ENDINGS]
    with mpl.rc_context(_settings("#000000")), warnings.catch_warnings():
        # A script that the font lacks shows as boxes, which tells the same.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas = Canvas(layout="constrained")
        draw(canvas)
        for one in paths:
            canvas.savefig(one, dpi=300, metadata={"Date": None} if one.suffix == ".svg" else None)
            canvas.set_layout_engine("none")  # what the first one arranged is good for the second
    return paths


def load_maps(canvas: Canvas, summaries: Mapping[str, Summary]) -> None:
    """Figure 4: each layer's choices by expert, one map a model."""
    canvas.set_size_inches(7.2, sum(1.1 + 0.26 * one.sample.num_layers for one in summaries.values()))
    heights = [one.sample.num_layers + 3 for one in summaries.values()]
    all_axes = canvas.subplots(len(summaries), 1, squeeze=False, height_ratios=heights)[:, 0]
    top = max(100 * float(one.load.share.max()) for one in summaries.values())
    for axes, (name, one) in zip(all_axes, summaries.items(), strict=True):
        image = axes.imshow(100 * one.load.share[0], aspect="auto", cmap="viridis", vmin=0, vmax=top)
        axes.set_title(name, loc="left")
        axes.set_ylabel("layer")
        axes.set_yticks(range(one.sample.num_layers))
        layout = one.sample.layout
        kinds: list[ExpertType] = [kind for kind in EXPERT_TYPES if layout.count(kind)]
        for kind in kinds[1:]:
            axes.axvline(layout.indices(kind).start - 0.5, color="white", linewidth=2)
        centres = [(layout.indices(kind)[0] + layout.indices(kind)[-1]) / 2 for kind in kinds]
        axes.set_xticks(centres, ["FFN" if kind == "ffn" else kind for kind in kinds])
        axes.set_xlabel("experts by type")
        canvas.colorbar(image, ax=axes, label="% of a layer's choices")


def types_by_ffn(canvas: Canvas, summaries: Mapping[str, Summary], least: int, shown: int = 15) -> None:
    """Figure 5: the token types that use the most and the fewest FFN experts, one column a model."""
    canvas.set_size_inches(3.8 * len(summaries), 0.24 * 2 * shown + 1.2)
    for axes, (name, one) in zip(_columns(canvas, len(summaries)), summaries.items(), strict=True):
        types = one.types["ffn"]
        often = np.flatnonzero(types.count >= least)
        ends = often if len(often) <= 2 * shown else np.concatenate([often[:shown], often[-shown:]])
        _bars(axes, types, ends, TYPE_COLOURS["ffn"])
        axes.set_title(name, loc="left")
        axes.set_xlabel(f"FFN experts per token (95 % interval)\ntypes seen {least} times or more")


def types_by_zero_computation(canvas: Canvas, summaries: Mapping[str, Summary], least: int, shown: int = 12) -> None:
    """Figure A: the token types that use the most zero, copy and constant experts, one row a model."""
    canvas.set_size_inches(9.6, (0.24 * shown + 1.1) * len(summaries))
    grid = canvas.subplots(len(summaries), 3, squeeze=False)
    for row, (name, one) in zip(grid, summaries.items(), strict=True):
        for axes, kind in zip(row, ("zero", "copy", "constant"), strict=True):
            types = one.types[kind]
            _bars(axes, types, np.flatnonzero(types.count >= least)[:shown], TYPE_COLOURS[kind])
            axes.set_xlabel(f"{kind} experts per token")
        row[0].set_title(f"{name}, with 95 % intervals", loc="left")


def ffn_by_layer(canvas: Canvas, summaries: Mapping[str, Summary]) -> None:
    """FFN experts per token by layer; dotted, what tau aims at."""
    canvas.set_size_inches(5.4, 3.2)
    axes = canvas.subplots()
    for at, (name, one) in enumerate(summaries.items()):
        colour = COLOURS[at % len(COLOURS)]
        axes.plot(one.per_token["ffn"].layers[0], "o-", color=colour, label=name, markersize=4)
        if not one.vanilla:
            axes.axhline(one.aim, color=colour, linestyle=":", label=f"{name}, aimed at")
    axes.set_xticks(range(max(one.sample.num_layers for one in summaries.values())))
    axes.set_xlabel("layer")
    axes.set_ylabel("FFN experts per token")
    axes.set_ylim(0, 1.05 * max(one.sample.top_k for one in summaries.values()))
    _legend(axes)


def score_densities(canvas: Canvas, summaries: Mapping[str, Summary]) -> None:
    """Figure 6: densities of the scores of the first and the second choice, with mean and variance."""
    slots = min(2, max(one.sample.top_k for one in summaries.values()))
    canvas.set_size_inches(4.6 * slots, 3.0 + 0.2 * len(summaries))
    for slot, axes in enumerate(_columns(canvas, slots)):
        for at, (name, one) in enumerate(summaries.items()):
            if slot < one.sample.top_k:
                scores, colour = one.scores, COLOURS[at % len(COLOURS)]
                label = f"{name}: mean {scores.mean[slot]:.3f}, variance {scores.variance[slot]:.4f}"
                centres = (scores.edges[1:] + scores.edges[:-1]) / 2
                axes.plot(centres, scores.overall[slot], color=colour, label=label)
                axes.fill_between(centres, scores.overall[slot], color=colour, alpha=0.12)
        axes.set_xlabel(f"top-{slot + 1} score (probability)")
        axes.set_ylabel("density")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, fontsize=8.5)


def layer_relations(canvas: Canvas, summaries: Mapping[str, Summary]) -> None:
    """What one layer's routing tells of another's, by one measure for all models.

    A vanilla model's FFN experts per token never vary, so that its first choices must tell.
    """
    canvas.set_size_inches(4.6 * len(summaries), 3.8)
    by_first = any(one.vanilla for one in summaries.values())
    words = "Cramér's V of the first choices" if by_first else "correlation of FFN experts per token"
    colours: Any = {"cmap": "viridis", "vmin": 0, "vmax": 1} if by_first else {"cmap": "PuOr_r", "vmin": -1, "vmax": 1}
    for axes, (name, one) in zip(_columns(canvas, len(summaries)), summaries.items(), strict=True):
        values = one.correlation.first if by_first else one.correlation.ffn
        image = axes.imshow(values, **colours)
        axes.set_title(name, loc="left")
        axes.set_xlabel("layer")
        axes.set_ylabel("layer")
        axes.set_xticks(range(len(values)))
        axes.set_yticks(range(len(values)))
        canvas.colorbar(image, ax=axes, label=words, shrink=0.8)


def _columns(canvas: Canvas, count: int) -> Sequence[Axes]:
    return list(canvas.subplots(1, count, squeeze=False)[0])


def _bars(axes: Axes, types: TokenTypes, chosen: np.ndarray, colour: str) -> None:
    """The first on top."""
    names = [_visible(types.text[at]) for at in chosen]
    places = np.arange(len(chosen))[::-1]
    error = np.nan_to_num([types.mean - types.low, types.high - types.mean])[:, chosen]
    axes.barh(places, types.mean[chosen], color=colour, xerr=error, error_kw={"elinewidth": 0.8})
    axes.set_yticks(places, [name if len(name) < 20 else name[:18] + "…" for name in names], fontsize=8.5)
    axes.set_ylim(-0.6, len(chosen) - 0.4)


def _visible(text: str) -> str:
    """White space as signs; whatever else has no shape, and no place in an SVG, as its number."""
    signs = text.translate(str.maketrans(" \t\n\r", "␣⇥↵␍"))
    return "".join(sign if sign.isprintable() else f"<{ord(sign):02X}>" for sign in signs)
