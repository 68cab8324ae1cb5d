"""The figures for papers: written as PNG and SVG, with units, for every kind of model."""

import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
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


def test_layers_are_related_by_one_measure_as_soon_as_one_model_is_vanilla() -> None:
    from matplotlib.figure import Figure

    from moepp.analyze import plots

    summaries = {name: summarize(table) for name, table in several().items() if name != "one layer"}
    canvas = Figure()
    plots.layer_relations(canvas, summaries)
    images = [axes.images[0] for axes in canvas.axes if axes.images]
    for image, one in zip(images, summaries.values(), strict=True):
        np.testing.assert_array_equal(image.get_array(), one.correlation.first)
        assert image.get_clim() == (0, 1)


def test_ends_of_lines_are_told_apart() -> None:
    from matplotlib.figure import Figure

    from moepp.analyze import plots

    words = {0: "\r", 1: "\n", 2: "\xa0"}
    canvas = Figure()
    table = replace(hostile_table(60), token=np.arange(60, dtype=np.int32) % 3, vocabulary=words)
    plots.types_by_ffn(canvas, {"m": summarize(table)}, least=1)
    assert {label.get_text() for label in canvas.axes[0].get_yticklabels()} == {"␍", "↵", "<A0>"}


def test_figures_are_all_of_one_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from moepp.analyze import plots

    full, folder = False, tmp_path / "figures"

    def save(draw: Callable[..., None], path: Path) -> list[Path]:
        if full and path.name == "layers":
            raise OSError(28, "No space left on device")
        path.with_suffix(".png").write_text(" ".join(draw.keywords["summaries"]))
        return [path.with_suffix(".png")]

    def found() -> dict[str, str]:
        return {path.name: path.read_text() for path in folder.iterdir()}

    monkeypatch.setattr(plots, "save", save)
    folder.mkdir()
    (folder / "mine.png").write_text("mine")
    write_figures({"m": hostile_table(60)}, folder)
    assert found() == {f"{name}.png": "m" for name in COMMON | BY_TYPE} | {"mine.png": "mine"}
    before, full = found(), True
    vanilla = {"vanilla": hostile_table(60, 1, layout=VANILLA, drops=False)}
    with pytest.raises(DataError, match="No space left"):
        write_figures(vanilla, folder)
    assert found() == before, "a failure leaves the earlier run's figures"
    assert list(tmp_path.iterdir()) == [folder]
    full = False
    assert {path.name for path in write_figures(vanilla, folder)} == {f"{name}.png" for name in COMMON}
    assert found() == {f"{name}.png": "vanilla" for name in COMMON} | {"mine.png": "mine"}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"figures cannot be written to: Not a directory; choose another folder"):
        write_figures({"m": hostile_table(60)}, tmp_path / "file" / "figures")
