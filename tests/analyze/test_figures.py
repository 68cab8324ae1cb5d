"""The figures for papers: written as PNG and SVG, with units, for every kind of model."""

import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from moepp.analyze import write_figures
from moepp.analyze.summary import summarize
from moepp.errors import DataError

from .pages import VANILLA, hostile_table, several

COMMON = {"expert-load", "ffn-by-layer", "scores", "layers"}
BY_TYPE = {"ffn-by-token-type", "zero-computation-by-token-type"}


def test_each_figure_is_a_png_of_300_dots_per_inch_and_an_svg(tmp_path: Path) -> None:
    paths = write_figures({"MoE++ <1>": hostile_table()}, tmp_path / "figures")
    assert {path.name for path in paths} == {f"{n}.{e}" for n in COMMON | BY_TYPE for e in ("png", "svg")}
    for path in paths:
        if path.suffix == ".svg":
            assert ET.parse(path).getroot().tag.endswith("svg")
        else:
            data = path.read_bytes()
            assert data.startswith(b"\x89PNG")
            at = data.index(b"pHYs") + 4
            assert struct.unpack(">II", data[at : at + 8]) == (11811, 11811)  # per metre: 300 per inch


def test_figures_by_token_type_leave_a_vanilla_model_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from moepp.analyze import plots  # not at the top: make gpu collects this file where matplotlib is missing

    drawn = {}
    monkeypatch.setattr(plots, "save", lambda draw, path: drawn.update({path.name: draw.keywords["summaries"]}) or [])
    write_figures(several(), tmp_path)
    assert drawn.keys() == COMMON | BY_TYPE
    assert all("vanilla" in drawn[name] for name in COMMON)
    assert all(drawn[name].keys() == several().keys() - {"vanilla"} for name in BY_TYPE)
    drawn.clear()
    write_figures({"vanilla": hostile_table(60, 1, layout=VANILLA, drops=False)}, tmp_path)
    assert drawn.keys() == COMMON


def test_axes_say_what_they_count() -> None:
    from matplotlib.figure import Figure

    from moepp.analyze import plots

    def labels(draw: Callable[..., None], **options: int) -> str:
        canvas = Figure()
        draw(canvas, {"m": summarize(hostile_table())}, **options)
        return " | ".join(text for axes in canvas.axes for text in (axes.get_xlabel(), axes.get_ylabel()))

    assert re.search(r"experts by type \| layer \|.*% of a layer's choices", labels(plots.load_maps))
    assert "layer | FFN experts per token" in labels(plots.ffn_by_layer)
    assert "top-1 score (probability) | density" in labels(plots.score_densities)
    assert "correlation of FFN experts per token" in labels(plots.layer_relations)
    assert "FFN experts per token (95 % interval)\ntypes seen 1 times" in labels(plots.types_by_ffn, least=1)
    assert "zero experts per token" in labels(plots.types_by_zero_computation, least=1)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"figures cannot be written to: Not a directory; choose another folder"):
        write_figures({"m": hostile_table(60)}, tmp_path / "file" / "figures")
