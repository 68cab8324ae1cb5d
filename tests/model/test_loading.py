"""Folders that commands load models from: those that can be, and every way in which they cannot, in one line."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from moepp.data import load_tokenizer, train_tokenizer
from moepp.errors import BackendUnavailable, ConfigError, DataError
from moepp.model import MoEPPForCausalLM, load_config, load_model

from .factory import tiny_model, tokens

INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00007.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model, saved whole, in shards and pickled."""
    folder = tmp_path_factory.mktemp("loading")
    model = tiny_model()
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "shards", max_shard_size="40KB")
    assert (folder / "shards" / SHARD).is_file()
    model.config.save_pretrained(folder / "pickled")
    torch.save(model.state_dict(), folder / "pickled" / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("kind", ["whole", "shards", "pickled"])
def test_a_saved_model_comes_back_with_equal_logits(kind: str, saved: Path) -> None:
    model = load_model(saved / kind)
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(tokens(2, 12)).logits, tiny_model()(tokens(2, 12)).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16], ids=str)
def test_dtype_and_arguments_of_from_pretrained_are_passed_on(dtype: str | torch.dtype, saved: Path) -> None:
    model = load_model(saved / "whole", dtype=dtype, device="auto", experts_implementation="grouped")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._experts_implementation == "grouped"


def test_transformers_verbosity_is_as_before(saved: Path) -> None:
    before = logging.get_verbosity()
    load_model(saved / "whole")
    with pytest.raises(DataError):
        load_model(saved / "nowhere")
    assert logging.get_verbosity() == before


def test_load_config_is_the_models(saved: Path) -> None:
    assert load_config(saved / "whole").moe == tiny_model().config.moe


def truncate(file: str) -> Callable[[Path], None]:
    """Half of a file, as after a kill or a broken download."""

    def damage(folder: Path) -> None:
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: len(whole) // 2])

    return damage


def write(file: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return damage


def remove(file: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / file).unlink()

    return damage


def configure(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def point_nowhere(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "model-00009-of-00007.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


class Opens:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def pickle_code(folder: Path) -> None:
    torch.save({"lm_head.weight": Opens(folder / "ran")}, folder / "pytorch_model.bin")


COVERED = r"\S+{} cannot be read \(.*\): it is damaged; copy or download it again$"
OTHER = r"\S+config\.json does not describe the saved weights: "
WRONG: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no configuration": ("whole", remove("config.json"), r"\S+ holds no config\.json, so no model; give a folder "),
    "no weights": ("whole", remove("model.safetensors"), r"\S+ holds no weights, neither model\.safetensors nor "),
    "configuration cut off": ("whole", truncate("config.json"), r"\S+config\.json is not JSON: .*; save the model ag"),
    "configuration of another kind": ("whole", write("config.json", b"[]"), r"\S+config\.json is of a model of type "),
    "another architecture": ("whole", configure(model_type="llama"), r"\S+config\.json is of a model of type 'llama'"),
    "configuration of a wrong type": ("whole", configure(tau="x"), r"\S+config\.json\.tau='x' must be of type float$"),
    "configuration that cannot work": ("whole", configure(top_k=99), r"moe\.top_k=99 exceeds the 8 experts of this"),
    "configuration of an unknown dtype": ("whole", configure(dtype="float99"), r"\S+ cannot be \w+: .*float99.*; save"),
    "generation settings cut off": (
        *("whole", truncate("generation_config.json")),
        r"\S+generation_config\.json is not JSON: .*; save the model again, or remove the file$",
    ),
    "weights cut off": ("whole", truncate("model.safetensors"), COVERED.format(r"model\.safetensors")),
    "weights empty": ("whole", write("model.safetensors", b""), COVERED.format(r"model\.safetensors")),
    "weights of something else": ("whole", write("model.safetensors", b"\xff" * 99), COVERED.format(r"safetensors")),
    "shard cut off": ("shards", truncate(SHARD), COVERED.format(SHARD)),
    "shard missing": ("shards", remove(SHARD), rf"\S+{INDEX} points to {SHARD}, which does not exist; download"),
    "index points nowhere": ("shards", point_nowhere, rf"\S+{INDEX} points to model-00009\S+, which does not exist; "),
    "index cut off": ("shards", truncate(INDEX), rf"\S+{INDEX} is not JSON: .*; it is damaged; copy or download"),
    "index is a list": ("shards", write(INDEX, b"[]"), rf"\S+{INDEX} has no weight_map from weights to files: it is"),
    "index of other things": ("shards", write(INDEX, b'{"weight_map": {"a": 1}}'), rf"\S+{INDEX} has no weight_map "),
    "pickle cut off": ("pickled", truncate("pytorch_model.bin"), COVERED.format(r"pytorch_model\.bin")),
    "pickle of something else": (
        "pickled",
        write("pytorch_model.bin", b"x" * 99),
        COVERED.format(r"pytorch_model\.bin"),
    ),
    "pickle that runs code": (
        "pickled",
        pickle_code,
        r"\S+pytorch_model\.bin asks to run \S*open, which a checkpoint has no need for; nothing was run",
    ),
    "a layer too many configured": (
        *("whole", configure(num_hidden_layers=4)),
        OTHER + r"12 missing: model\.layers\.3\.input_layernorm\.weight, model\.layers\.3\.mlp\.\S+, \S+, …; restore ",
    ),
    "a layer too few configured": (
        *("whole", configure(num_hidden_layers=2)),
        OTHER + r"12 unexpected: model\.layers\.2\.input_layernorm\.weight, ",
    ),
    "an expert too many configured": (
        *("shards", configure(num_ffn_experts=5)),
        OTHER + r"11 of another shape: model\.layers\.0\.mlp\.experts\.down_proj \(saved \(4, 32, 48\), configured "
        r"\(5, 32, 48\)\), .*; restore the configuration they were saved with$",
    ),
    "another vocabulary configured": (
        *("whole", configure(vocab_size=90)),
        OTHER + r"2 of another shape: lm_head\.weight \(saved \(97, 32\), configured \(90, 32\)\), ",
    ),
    "a weight missing": (
        *("pickled", lambda folder: torch.save({}, folder / "pytorch_model.bin")),
        OTHER + r"\d+ missing: lm_head\.weight, ",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_that_cannot_be_loaded_is_refused_in_one_line(case: str, saved: Path, tmp_path: Path) -> None:
    kind, damage, message = WRONG[case]
    folder = tmp_path / "copy"
    shutil.copytree(saved / kind, folder)
    damage(folder)
    with pytest.raises((DataError, ConfigError)) as caught:
        load_model(folder)
    assert re.match(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)
    assert not (folder / "ran").exists()


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^model folder '\S+nowhere' does not exist; check the path, or download "):
        load_model(tmp_path / "nowhere")


def test_a_model_one_level_below_is_suggested(saved: Path) -> None:
    with pytest.raises(DataError, match=r"holds no config\.json, so no model; did you mean \S+pickled\?$"):
        load_model(saved)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "float61"}, ConfigError, r"^dtype='float61' does not exist; did you mean 'float64'\?$"),
        ({"device": "abacus"}, ConfigError, r"^device='abacus' does not exist; use auto, cpu or cuda$"),
        ({"device": "xpu:9"}, BackendUnavailable, r"^device='xpu:9' is not there as far as torch sees; use auto or c"),
    ],
)
def test_a_dtype_or_device_that_cannot_be_is_refused(
    arguments: dict, error: type[Exception], message: str, saved: Path
) -> None:
    with pytest.raises(error, match=message):
        load_model(saved / "whole", **arguments)


# Tokenizers


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["def main(args):\n    return 0\n"] * 20, 300).save_pretrained(folder)
    return folder


def test_a_tokenizer_larger_than_the_embedding_is_refused(tokenizer_folder: Path) -> None:
    entries = len(load_tokenizer(str(tokenizer_folder)))
    assert len(load_tokenizer(str(tokenizer_folder), vocab_size=entries)) == entries
    with pytest.raises(DataError, match=rf"has {entries} entries, more than the {entries - 1} rows of the model's "):
        load_tokenizer(str(tokenizer_folder), vocab_size=entries - 1)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate("tokenizer.json"), "Expecting .*"),
        (write("tokenizer.json", b"{}"), ".*"),
        (truncate("tokenizer_config.json"), "Unterminated .*"),
        (write("tokenizer_config.json", b"[]"), ".*"),
        (remove("tokenizer.json"), r"no tokenizer\.json or other tokenizer that transformers knows is there"),
    ],
    ids=["cut off", "another", "settings cut off", "other settings", "missing"],
)
def test_a_damaged_tokenizer_is_refused_in_one_line(
    damage: Callable[[Path], None], reason: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tokenizer_folder, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(DataError, match=rf"^tokenizer='\S+copy' cannot be loaded: {reason}; give a folder ") as caught:
        load_tokenizer(str(tmp_path / "copy"))
    assert "\n" not in str(caught.value)


def test_a_model_too_large_for_the_device_is_not_called_damaged(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(MoEPPForCausalLM, "from_pretrained", full)
    with pytest.raises(
        DataError, match=r"does not fit into the memory of device='cpu' with dtype='auto'; use bfloat16"
    ):
        load_model(saved / "whole", dtype="auto")
