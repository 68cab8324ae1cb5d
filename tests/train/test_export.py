"""A run's checkpoint becomes a saved model, and a saved model the beginning of another run."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moepp import cli
from moepp.errors import ConfigError, DataError
from moepp.model import load_model
from moepp.train import export

from .tiny import Crash, Runner, at_step, crash, weights


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["moepp", "convert", *map(str, arguments)])
    cli.main()


def test_the_last_checkpoint_is_the_trained_model(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """File for file, except for what a run writes beside them."""
    model = tmp_path / "model"
    with pytest.raises(SystemExit, match="0"):
        convert(monkeypatch, plain / "checkpoint-12", model)
    assert capsys.readouterr().out.startswith(f"{plain / 'checkpoint-12'} → {model}: ")
    names = {path.name for path in plain.iterdir() if path.is_file()} - {"metrics.jsonl"}
    assert {path.name for path in model.iterdir()} == names
    for name in names - {"model.safetensors"}:
        assert (model / name).read_bytes() == (plain / name).read_bytes(), name
    assert weights(model).keys() == weights(plain).keys()
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(model).items())


def test_an_earlier_checkpoint_has_its_own_weights_and_no_card(plain: Path, tmp_path: Path) -> None:
    export.export(plain / "checkpoint-4", tmp_path)
    assert not (tmp_path / "README.md").exists()
    assert not torch.equal(weights(tmp_path)["lm_head.weight"], weights(plain)["lm_head.weight"])
    load_model(tmp_path)


def test_large_models_take_several_files(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds what may be in memory at a time, or a single tensor that is larger."""
    monkeypatch.setattr(export, "SHARD_BYTES", 20_000)
    seen: list[tuple[int, int]] = []
    export.export(plain / "checkpoint-12", tmp_path, progress=lambda done, total: seen.append((done, total)))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == len(seen) > 2
    assert seen[-1][0] == seen[-1][1] == sum(tensor.nbytes for tensor in weights(plain).values())
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 20_000
    state = load_model(tmp_path).state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights(plain).items())


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        ("__0_0.distcp", (), "checkpoint-8 is damaged: __0_0.distcp is missing; resume from the one before it"),
        ("manifest.json", (), "checkpoint-8 is damaged: manifest.json is missing; resume from the one before it"),
        (None, ("--to", "released"), "--to=released needs a model and "),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str | None,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    run = shutil.copytree(plain, tmp_path / "run")
    if damage:
        (run / "checkpoint-8" / damage).unlink()
    with pytest.raises(SystemExit, match="2"):
        convert(monkeypatch, run / "checkpoint-8", tmp_path / "model", *arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "model").exists()


def test_an_index_that_asks_to_run_something_is_refused(plain: Path, tmp_path: Path) -> None:
    """torch would run it."""
    folder = shutil.copytree(plain / "checkpoint-12", tmp_path / "checkpoint-12")
    (folder / ".metadata").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(DataError, match=r"asks to run os\.system, which it has no need for; nothing was run"):
        export.export(folder, tmp_path)


def test_a_run_starts_from_saved_weights(runner: Runner, plain: Path) -> None:
    """And goes on from its own: the folder may be gone when it is resumed."""
    folder = runner.out("saved")
    folder.mkdir()
    export.export(plain / "checkpoint-12", folder)
    start = f"initial_weights={folder}"
    with at_step(6, crash), pytest.raises(Crash):
        runner.train("run", start, "training.eval_on_start=true", fresh=True)
    logged = json.loads((runner.out("run") / "metrics.jsonl").read_text().splitlines()[0])
    last = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines() if "eval_loss" in line][-1]
    assert logged["step"] == 0
    assert logged["eval_loss"] == last["eval_loss"]
    shutil.rmtree(folder)
    runner.train("run", start, fresh=True, resume=True)


def test_saved_weights_of_another_model_are_refused(runner: Runner, plain: Path, tmp_path: Path) -> None:
    start = f"initial_weights={plain}"
    message = (
        r"^model\.intermediate_size=64 differs from 48, the value of the weights in initial_weights='\S+plain'; set"
    )
    with pytest.raises(ConfigError, match=message):
        runner.train("run", start, "model.intermediate_size=64")
    with pytest.raises(DataError, match=r"^model folder 'nowhere' does not exist"):
        runner.train("run", "initial_weights=nowhere", f"tokenizer.path={plain}")
    cut = shutil.copytree(plain, tmp_path / "cut")
    save_file({name: value for name, value in weights(plain).items() if "norm" not in name}, cut / "model.safetensors")
    with pytest.raises(DataError, match=r"^\S+cut lacks model\.layers\.0\.input_layernorm\.weight"):
        runner.train("other", f"initial_weights={cut}")
