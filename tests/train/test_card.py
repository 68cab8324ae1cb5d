"""The model card: Hugging Face's library reads it, and it says what the run says."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from moepp import __version__
from moepp.data import Data, SourceSpec
from moepp.errors import DataError
from moepp.model import MoEPPConfig, load_config, preset
from moepp.train import Recipe
from moepp.train.card import write_card

from .tiny import Runner, logged

DATA = Data(train=None, validation={}, hash="h", corpus_hash="c" * 64, rows=[])  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def card(plain: Path) -> ModelCard:
    return ModelCard.load(plain / "README.md")


def written(path: Path, recipe: Recipe, config: MoEPPConfig | None = None, **changes: Any) -> ModelCard:
    given = {"config": config or recipe.model_config(), "data": DATA, "metrics": {}, "log": []} | changes
    write_card(path / "README.md", recipe=recipe, **given)
    return ModelCard.load(path / "README.md")


def test_the_header_is_what_the_hub_reads(card: ModelCard) -> None:
    header = card.data.to_dict()
    assert header["library_name"] == "transformers"
    assert header["pipeline_tag"] == "text-generation"
    assert {"moepp", "mixture-of-experts", "arxiv:2410.07348"} <= set(header["tags"])
    assert header["model-index"][0]["name"] == "plain"
    assert "license" not in header
    assert "datasets" not in header


def test_results_are_the_last_validations(card: ModelCard, plain: Path) -> None:
    last = logged(plain, "eval_loss")[-1]
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"loss": last["eval_loss"], "bits_per_byte": last["eval_bits_per_byte"]}
    assert f"| held-out prose loss | {last['eval_prose_loss']:.4f} |" in card.text
    assert f"in the last steps logged | {logged(plain)[-1]['ffn_per_token']:.2f} |" in card.text


def test_model_data_and_training_are_the_runs(card: ModelCard, plain: Path) -> None:
    config = load_config(plain)
    assert f"| layers × hidden size | {config.num_hidden_layers} × {config.hidden_size} |" in card.text
    assert f"| experts per layer | {config.num_ffn_experts} ffn, 2 constant, 1 copy, 1 zero |" in card.text
    assert re.search(r"\| prose \| train \| 0\.75 \| \d+ \| \d+ \| [\d.]+ \|", card.text)
    assert "- prose: files" in card.text
    assert re.search(r"Corpus hash \(sha256\): `[0-9a-f]{64}`", card.text)
    assert "| steps | 12 |" in card.text
    assert f"| tokens | {12 * 4 * 32:,} |" in card.text
    assert "| seed | 0, one run |" in card.text
    assert f"| versions | moepp {__version__}, torch " in card.text


def test_its_three_lines_of_use_run_beside_the_folder(
    card: ModelCard, plain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plain.parent)
    assert str(plain.parent) not in card.text, "a card is for others, who have no such folder"
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert len(snippet.strip().splitlines()) == 3
    exec(snippet, {})
    assert capsys.readouterr().out.startswith("Once")


def test_a_licence_is_the_recipes_and_never_guessed(runner: Runner, tmp_path: Path) -> None:
    recipe = runner.recipe("any", "license=apache-2.0")
    stated, silent = (written(tmp_path, one) for one in (recipe, dataclasses.replace(recipe, license=None)))
    assert stated.data.license == "apache-2.0"
    assert stated.text.rstrip().endswith("apache-2.0")
    assert silent.data.license is None
    assert silent.text.rstrip().endswith("Not stated in the recipe of this run.")


def test_data_sets_of_the_hub_are_named_and_files_are_not(runner: Runner, tmp_path: Path) -> None:
    recipe = runner.recipe("any")
    sources = [
        SourceSpec("a", dataset="org/set"),
        SourceSpec("b", dataset="json", data_files=["x.json"]),
        SourceSpec("c", dataset=str(tmp_path)),
        SourceSpec("d", files=["x.txt"]),
    ]
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, sources=sources))
    card = written(tmp_path, recipe)
    assert card.data.datasets == ["org/set"]
    assert "- a: data set org/set, split train\n- b: files\n" in card.text


def test_presets_and_twins_say_what_they_are(runner: Runner, tmp_path: Path) -> None:
    recipe = dataclasses.replace(runner.recipe("any"), model={"preset": "moepp-0.6b-8+4"})
    text = written(tmp_path, recipe).text
    assert "with zero-computation experts" in text
    assert "preset `moepp-0.6b-8+4`" in text
    assert "A vanilla mixture-of-experts" in written(tmp_path, recipe, preset("moe-0.6b-8")).text


def test_what_the_run_does_not_know_is_left_out(runner: Runner, tmp_path: Path) -> None:
    """No validation, no log, sources whose size a stream hasn't told and whose name is a table's border."""
    rows = [{"source": "a|b", "split": "train", "weight": 1.0, "tokens": None}]
    card = written(tmp_path, runner.recipe("any"), data=dataclasses.replace(DATA, rows=rows))
    assert card.data.eval_results is None
    assert "Nothing was held out to validate on." in card.text
    assert r"| a\|b | train | 1 | – | – | – |" in card.text


def test_a_card_that_cannot_be_written_leaves_the_model(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moepp.train.run.write_card", full)
    with pytest.raises(DataError, match=r"^the model card could not be written to .*No space left"):
        runner.train("out", "training.max_steps=1")
    assert load_config(runner.out("out"))
    assert (runner.out("out") / "model.safetensors").is_file()
