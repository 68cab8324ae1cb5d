"""Every experiment, from training to JSON, page and picture, at a scale where numbers mean nothing."""

import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree
from io import StringIO
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from experiments.catalogue import NAMES, experiment
from experiments.lab import Lab
from experiments.plots import save
from experiments.result import Origin, Result
from experiments.show import show

from .toy import fill


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_trains_measures_writes_and_draws(name: str, lab: Lab, tmp_path: Path) -> None:
    one = experiment(name)
    assert one.name == name
    fill(lab, one.runs(lab.scale))
    result = one.measure(lab)
    path = result.write(tmp_path)
    read = Result.read(path)
    assert dataclasses.asdict(read) == json.loads(json.dumps(dataclasses.asdict(result)))
    assert {claim.origin for claim in read.claims} <= set(get_args(Origin))
    assert result.tables
    assert all(claim.text.endswith((".", "?")) for claim in result.claims)
    assert _finite(result.data)
    out = StringIO()
    show(result, Console(file=out, width=200))
    assert result.title in out.getvalue()
    if one.draw is not None:
        save(read, one.draw, tmp_path / "figure.svg")
        assert ElementTree.parse(tmp_path / "figure.svg").getroot().tag.endswith("svg")


def _finite(node: object) -> bool:
    if isinstance(node, dict):
        return all(map(_finite, node.values()))
    if isinstance(node, list | tuple):
        return all(map(_finite, node))
    return not isinstance(node, float) or math.isfinite(node)
