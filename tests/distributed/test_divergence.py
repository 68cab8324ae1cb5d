"""A number that is not finite on one process ends the run on all of them, with one explanation."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from moepp.train import load_recipe, train
from moepp.train.distributed import local
from moepp.train.diverged import TrainingDiverged

from ..train.tiny import at_step, logged, quiet, write_recipe, write_texts
from .processes import run_processes
from .runs import parallel_recipe

EXPERTS = "model.layers.1.mlp.experts.down_proj"


def _diverge(path: str, what: str) -> str:
    def poison(seen: dict[str, Any]) -> None:
        if dist.get_rank() != 1:
            return
        if what == "weights":
            with torch.no_grad():
                local(seen["model"].get_parameter(EXPERTS)).fill_(float("nan"))
        else:
            layer = seen["model"].get_submodule("model.layers.1.self_attn.o_proj")
            layer.register_forward_hook(lambda module, args, output: output * float("inf"))

    with at_step(2, poison), pytest.raises(TrainingDiverged) as stopped:
        train(load_recipe(path, ["distributed.ep_size=2"]), console=quiet())
    return str(stopped.value)


@pytest.mark.parametrize(
    ("what", "where"),
    [("weights", f"the weights of {EXPERTS}"), ("activation", "the output of model.layers.1.self_attn.o_proj")],
)
def test_all_processes_stop_and_name_the_place(what: str, where: str, tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts")
    path = write_recipe(tmp_path / "recipe.yaml", parallel_recipe(texts, tmp_path / "run"))
    said = run_processes(2, _diverge, str(path), what, timeout=90)
    assert said[0] == said[1]
    assert said[0].startswith(f"training diverged at step 3: what is not finite begins in {where}; ")
    assert [entry["step"] for entry in logged(tmp_path / "run")] == [1, 2]
