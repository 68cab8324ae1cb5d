"""The demo from recipe to report, on a corpus of a few kilobytes."""

import json
import os
import random
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import moepp.model  # noqa: F401 - registers the model type
from moepp.commands.demo import demo_recipe, run_demo
from moepp.commands.demo_compare import _in_turns
from moepp.errors import ConfigError
from moepp.train import load_recipe

from ..train.tiny import at_step

STEPS = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    words = [f"{a}{b}" for a in ("al", "be", "ga", "de") for b in ("pha", "ta", "mma", "lta")]
    generator = random.Random(0)
    for index in range(40):
        text = " ".join(generator.choice(words) for _ in range(200))
        (folder / f"{index}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recipe(corpus: Path) -> Path:
    path = corpus / "recipe.yaml"
    content = {
        "output_dir": "replaced by the demo",
        "model": {"preset": "debug", "vocab_size": 300},
        "tokenizer": {"vocab_size": 300},
        "data": {"sequence_length": 32, "sources": [{"name": "words", "files": [f"{corpus}/*.txt"]}]},
        "optimization": {"warmup_steps": 2},
        "training": {"max_steps": STEPS, "per_device_train_batch_size": 2, "logging_steps": 2, "save_steps": 3},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def out(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    run_demo(folder, recipe, ["seed=3"])
    return folder


def test_both_models_load_by_auto_classes(out: Path) -> None:
    for name, experts in (("moepp", 8), ("vanilla", 4)):
        model = AutoModelForCausalLM.from_pretrained(out / name)
        tokenizer = AutoTokenizer.from_pretrained(out / name)
        assert model.config.moe.layout().num_experts == experts
        assert len(tokenizer) <= model.config.vocab_size
        model.generate(**tokenizer("al", return_tensors="pt"), max_new_tokens=3)


def test_the_twins_differ_in_their_zero_computation_experts_and_residual_only(out: Path) -> None:
    ours, twin = (json.loads((out / name / "config.json").read_text()) for name in ("moepp", "vanilla"))
    different = {key for key in ours.keys() | twin.keys() if ours.get(key) != twin.get(key)}
    assert different == {"num_constant_experts", "num_copy_experts", "num_zero_experts", "gating_residual"}


def test_metrics_hold_both_runs(out: Path) -> None:
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name in ("MoE++", "vanilla"):
        logged = [entry["step"] for entry in entries if entry["model"] == name and "lm_loss" in entry]
        assert logged == [2, 4, 6]
        assert any("eval_loss" in entry for entry in entries if entry["model"] == name)


def test_results_are_measured_and_complete(out: Path) -> None:
    result = json.loads((out / "demo.json").read_text())
    assert result["finished"]
    ours, twin = result["models"]["MoE++"], result["models"]["vanilla"]
    # 4 FFN experts at tau .75 against 4 others.
    assert ours["ffn_share_target"] == pytest.approx(3 / 7)
    assert ours["throughput"]["synthetic"]["bound"] == pytest.approx(7 / 3, rel=0.05)
    assert ours["throughput"]["learned"]["bound"] == pytest.approx(2 / ours["throughput"]["learned"]["ffn_per_token"])
    for routing in ("synthetic", "learned"):
        assert ours["throughput"][routing]["tokens_per_second"] > 0
        assert twin["throughput"][routing]["speedup"] == 1
    assert len(ours["ffn_share"]) == 2
    assert all(sum(load) == pytest.approx(1) for load in ours["expert_load"])
    assert twin["ffn_share"] == [1.0, 1.0]
    assert ours["validation"]["eval_loss"] > 0
    for fact in ("seed", "corpus", "machine", "versions"):
        assert result["facts"][fact]
    assert result["facts"]["seed"].startswith("3")


def test_the_report_shows_what_was_measured(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    result = json.loads((out / "demo.json").read_text())
    for model in result["models"].values():
        assert f"{model['validation']['eval_loss']:.4f}" in page
        assert f"{model['parameters']:,}" in page
    assert "synthetic routing" in page
    assert "learned routing" in page
    assert "aimed at" in page
    assert "one seed" in page
    assert not re.search(r"(src|href)\s*=\s*[\"']https?:", page)


def test_a_demo_replaces_an_earlier_one_and_nothing_else(tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"--out=.* is in use by something else than a demo; choose another"):
        run_demo(tmp_path, recipe, [])
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_demo_goes_on_where_it_was(
    tmp_path: Path, recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, overrides = tmp_path / "out", ["seed=3", "training.save_steps=2"]
    monkeypatch.setattr("sys.argv", ["moepp", "demo", *overrides])
    with at_step(4, lambda seen: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(SystemExit) as stopped:
        run_demo(folder, recipe, overrides)
    assert stopped.value.code == 130
    assert "to go on: moepp demo seed=3 training.save_steps=2" in capsys.readouterr().out
    assert not (folder / "vanilla").exists()
    run_demo(folder, recipe, overrides)
    for name in ("moepp", "vanilla"):  # the same models as without the interruption
        assert (folder / name / "model.safetensors").read_bytes() == (out / name / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vanilla=true", "nothing to compare"),
        ("training.logging_steps=50", r"training\.logging_steps=50 exceeds training\.max_steps=6"),
        ("data.validation_fraction=0", "leaves no text to compare"),
        ("model.num_ffn_experts=1", r"moe\.top_k=2 exceeds the 1 experts"),
    ],
)
def test_what_would_fail_after_training_is_refused_before(
    tmp_path: Path, recipe: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_demo(tmp_path / "out", recipe, [override])
    assert not (tmp_path / "out").exists()


def test_throughput_is_measured_on_every_source() -> None:
    batches = [torch.full((3, 4), source) for source in range(3)]
    assert _in_turns(batches, 24).unique().tolist() == [0, 1, 2]
    assert _in_turns(batches, 1).shape == (1, 4)


def test_the_shipped_recipe_is_valid() -> None:
    recipe = load_recipe(demo_recipe(), ["training.max_steps=50", "model.tau=0.5"])
    assert recipe.data.sources[0].python_library == "prose"
    assert not recipe.output_dir.startswith("runs/demo")  # the demo's own folder: one would refuse the other
