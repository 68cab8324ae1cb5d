"""The figures of ``moepp analyze`` as files for papers."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ..errors import DataError
from .routing_table import RoutingTable
from .summary import Summary, summarize

_BY_TYPE = ("ffn-by-token-type", "zero-computation-by-token-type")


def write_figures(tables: Mapping[str, RoutingTable], folder: Path) -> list[Path]:
    """Writes each figure as PNG (300 dpi) and SVG: all of them or, where one fails, none.

    Figures of an earlier run that are not drawn now are removed.

    Models without zero-computation experts are left out of the figures by token type, where all types are alike.

    Args:
        tables: by the name that the figures call the model; at least one token each.
        folder: made if it is missing.

    Returns:
        the files written.

    Raises:
        DataError: the folder cannot be written to.
    """
    return save_figures({name: summarize(table) for name, table in tables.items()}, folder)


def save_figures(summaries: Mapping[str, Summary], folder: Path) -> list[Path]:
    """:func:`write_figures` for summaries that are there already."""
    from . import plots

    least = min(one.least for one in summaries.values())
    figures = {
        "expert-load": partial(plots.load_maps, summaries=summaries),
        "ffn-by-layer": partial(plots.ffn_by_layer, summaries=summaries),
        "scores": partial(plots.score_densities, summaries=summaries),
        "layers": partial(plots.layer_relations, summaries=summaries),
    }
    routed = {name: one for name, one in summaries.items() if not one.vanilla}
    if routed:
        drawings = (plots.types_by_ffn, plots.types_by_zero_computation)
        figures |= {
            name: partial(draw, summaries=routed, least=least) for name, draw in zip(_BY_TYPE, drawings, strict=True)
        }
    aside = folder.with_name(f".{folder.name}.incomplete")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        try:
            drawn = [path for name, draw in figures.items() for path in plots.save(draw, aside / name)]
            folder.mkdir(exist_ok=True)
            for name in (*figures, *_BY_TYPE):
                for ending in plots.ENDINGS:
                    (folder / name).with_suffix(ending).unlink(missing_ok=True)
            return [path.replace(folder / path.name) for path in drawn]
        finally:
            shutil.rmtree(aside)
    except OSError as error:
        raise DataError(f"{folder} cannot be written to: {error.strerror}; choose another folder") from error
