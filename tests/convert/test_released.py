"""``moepp convert``: there, back to the same bytes, and nothing in between when something is wrong."""

import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from moepp.convert import EXTRAS, REPORT, Format, convert
from moepp.convert import released as converter
from moepp.errors import ConversionError, DataError
from moepp.model import MoEPPForCausalLM, load_model, released

from ..model.factory import tiny_model
from ..model.test_released import WRONG, assert_published_outputs
from ..released_factory import (
    FIXTURE,
    published,
    published_config,
    published_tensors,
    tensors_of,
    write_published,
)


def bytes_of(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_same_bytes(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert bytes_of(actual[name]) == bytes_of(tensor), name


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture in our format."""
    folder = tmp_path_factory.mktemp("convert") / "ours"
    convert(FIXTURE, folder)
    return folder


# There and back


@pytest.mark.parametrize("load", [MoEPPForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained, load_model])
def test_the_converted_model_reproduces_the_published_codes_outputs(load: Callable, converted: Path) -> None:
    assert_published_outputs(load(converted), dict(np.load(FIXTURE / "expected.npz")))


def test_converting_gives_what_loading_gives(converted: Path) -> None:
    loaded = MoEPPForCausalLM.from_pretrained(FIXTURE).state_dict()
    assert_same_bytes(tensors_of(converted), dict(loaded))
    _, report = MoEPPForCausalLM.from_pretrained(converted, output_loading_info=True)
    assert {key: list(found) for key, found in report.items()} == {key: [] for key in report}


def test_the_way_back_gives_the_same_bytes(converted: Path, tmp_path: Path) -> None:
    convert(converted, tmp_path / "back")
    assert_same_bytes(tensors_of(tmp_path / "back"), tensors_of(FIXTURE))
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (FIXTURE / name).read_bytes()


KINDS: dict[str, dict] = {
    "tanh gate": {"moe_2layer_gate": True},
    "bfloat16": {"torch_dtype": "bfloat16"},
    "many experts": {"num_experts": [16]},  # whose numbers sort differently as text
    "tied": {"tie_word_embeddings": True},
    "one layer": {"num_hidden_layers": 1},
}


@pytest.mark.parametrize(("form", "shards"), [("pickled", 5), ("safetensors", 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_comes_back_to_the_same_bytes(
    kind: str, form: str, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "SHARD_BYTES", 6000)
    folder = published(tmp_path / "published", form=form, shards=shards, **KINDS[kind])
    convert(folder, tmp_path / "ours", "moepp")
    convert(tmp_path / "ours", tmp_path / "back", "released")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    assert_same_bytes(tensors_of(tmp_path / "back"), tensors_of(folder))
    assert (tmp_path / "back" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    loaded = MoEPPForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    assert_same_bytes(dict(MoEPPForCausalLM.from_pretrained(tmp_path / "ours").state_dict()), dict(loaded))


def test_each_tensor_keeps_its_dtype(tmp_path: Path) -> None:
    config = published_config()
    tensors = published_tensors(config)
    for name in tensors:
        if name.endswith("norm.weight") or ".experts." not in name:
            tensors[name] = tensors[name].to(torch.bfloat16 if "norm" in name else torch.float64)
    write_published(tmp_path / "published", config, tensors)
    convert(tmp_path / "published", tmp_path / "ours")
    held = tensors_of(tmp_path / "ours")
    assert held["model.norm.weight"].dtype == torch.bfloat16
    assert held["lm_head.weight"].dtype == torch.float64
    assert held["model.layers.1.mlp.experts.down_proj"].dtype == torch.float32
    convert(tmp_path / "ours", tmp_path / "back")
    assert_same_bytes(tensors_of(tmp_path / "back"), tensors)


def test_pickles_of_old_torch_and_odd_strides_are_read(tmp_path: Path) -> None:
    config = published_config()
    tensors = published_tensors(config)
    name = "model.layers.0.self_attn.q_proj.weight"
    odd = tensors | {name: tensors[name].T.contiguous().T}
    folder = write_published(tmp_path / "published", config, tensors, shards=1)
    torch.save(odd, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert(folder, tmp_path / "ours")
    assert torch.equal(tensors_of(tmp_path / "ours")[name], tensors[name])


def test_a_model_of_ours_can_be_published(tmp_path: Path) -> None:
    """It never had a matrix for layer 0 to ignore: zeros stand in for it."""
    model = tiny_model(combine="renormalize_nonzero", logits_std=1.0)
    model.save_pretrained(tmp_path / "ours")
    report = convert(tmp_path / "ours", tmp_path / "published", "released")
    assert report.filled == [released.UNUSED]
    assert not tensors_of(tmp_path / "published")[released.UNUSED].any()
    back = MoEPPForCausalLM.from_pretrained(tmp_path / "published").state_dict()
    assert_same_bytes(dict(back), dict(model.state_dict()))


def test_what_has_no_place_in_ours_is_in_a_named_file(converted: Path) -> None:
    with safe_open(converted / EXTRAS, framework="pt") as file:
        assert list(file.keys()) == [released.UNUSED]
        assert torch.equal(file.get_tensor(released.UNUSED), tensors_of(FIXTURE)[released.UNUSED])
        assert file.metadata()["config"] == (FIXTURE / "config.json").read_text()


def test_the_written_files_are_ordinary_safetensors(converted: Path) -> None:
    """Read by their own library, each at a multiple of its width, and in the order it would write them."""
    (file,) = converted.glob("model-*.safetensors")
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert (8 + length) % 8 == 0
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(raw) - 8 - length
    index = json.loads((converted / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == dict.fromkeys(header, file.name) | index["weight_map"]
    assert index["weight_map"].keys() == header.keys()


# What comes along


def test_tokenizer_and_generation_settings_are_carried_and_code_is_not(tmp_path: Path) -> None:
    folder = published(tmp_path / "published")
    carried = ["LICENSE", "README.md", "generation_config.json", "special_tokens_map.json", "tokenizer.json"]
    carried += ["tokenizer.model", "tokenizer_config.json"]
    left = ["modeling_moe.py", "optimizer.pt", "training_args.bin"]
    for name in (*carried, *left):
        (folder / name).write_text(f'{{"max_length": 5, "text": "{name}"}}')
    report = convert(folder, tmp_path / "ours")
    assert (report.carried, report.left) == (carried, left)
    for name in carried:
        assert (tmp_path / "ours" / name).read_bytes() == (folder / name).read_bytes()
    assert not any((tmp_path / "ours" / name).exists() for name in left)


def test_the_report_names_every_key(converted: Path) -> None:
    report = json.loads((converted / REPORT).read_text())
    assert report["to"] == "moepp"
    keys = {key["published"]: key for key in report["keys"]}
    assert keys.keys() == tensors_of(FIXTURE).keys()
    assert {key["ours"] for key in keys.values()} == {*tensors_of(converted), None}
    assert keys["model.layers.2.mlp.moe.experts.experts.3.up_proj.weight"] == {
        "kind": "FFN experts",
        "published": "model.layers.2.mlp.moe.experts.experts.3.up_proj.weight",
        "ours": "model.layers.2.mlp.experts.gate_up_proj",
        "row": 3,
        "shape": [96, 32],
        "dtype": "float32",
        "bytes": 96 * 32 * 4,
        "read_from": "pytorch_model-00003-of-00003.bin",
    }


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(FIXTURE, tmp_path / "ours", progress=lambda done, total: seen.append((done, total)))
    total = sum(tensor.nbytes for tensor in tensors_of(FIXTURE).values())
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


# What is refused


def assert_refused(
    folder: Path, destination: Path, error: type[Exception], message: str, to: str | None = None
) -> None:
    before = sorted(destination.parent.iterdir())
    with pytest.raises(error) as caught:
        convert(folder, destination, to)
    assert re.match(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)
    assert sorted(destination.parent.iterdir()) == before


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_published_folder_is_refused_before_anything_is_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, error, message = WRONG[case]
    folder = published(tmp_path / "published")
    damage(folder)
    monkeypatch.setattr(converter, "appearing", None)
    assert_refused(folder, tmp_path / "ours", error, message)
    assert not (folder / "ran").exists()


def flip_a_bit(folder: Path) -> None:
    """In the middle of the weights, where nothing but a checksum can tell."""
    file = folder / "pytorch_model-00002-of-00003.bin"
    data = bytearray(file.read_bytes())
    needle = torch.load(file, weights_only=True)["model.layers.1.self_attn.k_proj.weight"].numpy().tobytes()
    data[data.index(needle) + 9] ^= 1
    file.write_bytes(data)


def index_of(**weight_map: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


def add(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "pytorch_model-00003-of-00003.bin"
        torch.save(torch.load(file, weights_only=True) | {name: value}, file)

    return change


def other_dtype(folder: Path) -> None:
    name = "model.layers.1.mlp.moe.experts.experts.2.down_proj.weight"
    file = folder / "pytorch_model-00003-of-00003.bin"
    held = torch.load(file, weights_only=True)
    torch.save(held | {name: held[name].bfloat16()}, file)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def llama(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')


def no_weights(folder: Path) -> None:
    for file in folder.glob("pytorch_model*"):
        file.unlink()


BAD: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "a flipped bit": (flip_a_bit, DataError, r"\S+00002-of-00003\.bin is corrupt \(\S+ is not what was saved\); copy"),
    "index pointing outside": (
        *(index_of(a="../published/pytorch_model-00001-of-00003.bin"), DataError),
        r"\S+index\.json points to \.\./published/pytorch\S+, outside its folder: it is damaged",
    ),
    "index pointing nowhere": (index_of(a="b.bin"), DataError, r"\S+index\.json points to b\.bin, which does not exis"),
    "index of nothing": (index_of(), DataError, r"\S+index\.json has no weight_map from weights to files: it is dama"),
    "unknown tensors": (add("model.extra", torch.ones(1)), ConversionError, r".*; 1 unexpected: model\.extra; restore"),
    "tensor twice": (
        *(add("model.embed_tokens.weight", torch.ones(31, 16)), ConversionError),
        r"model\.embed_tokens\.weight is both in \S+00001-of-00003\.bin and in \S+00003-of-00003\.bin; remove one",
    ),
    "whole numbers": (
        *(add("model.norm.weight", torch.ones(16, dtype=torch.int8)), ConversionError),
        r"model\.norm\.weight in \S+ is torch\.int8 \(torch\.strided\); only floating-point weights are converted$",
    ),
    "no tensor": (add("step", 7), DataError, r"\S+00003-of-00003\.bin holds something else than named tensors; give a"),
    "experts of two dtypes": (
        *(other_dtype, ConversionError),
        r"\S+: the experts to be stacked in model\.layers\.1\.mlp\.experts\.down_proj differ in dtype; save them in on",
    ),
    "no configuration": (no_config, DataError, r"\S+ holds no config\.json, so no model; give a folder"),
    "no weights": (no_weights, DataError, r"\S+ holds no weights, neither model\.safetensors nor pytorch_model\.bin"),
    "another model": (
        llama,
        DataError,
        r"\S+config\.json is of a model of type 'llama', without MoE\+\+ layers; give a folder with a moepp",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_other_damage_is_refused_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    damage, error, message = BAD[case]
    folder = published(tmp_path / "published")
    damage(folder)
    assert_refused(folder, tmp_path / "ours", error, message)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", tmp_path / "ours", DataError, r"model folder '\S+nowhere' does not exist; ")


def test_every_wrong_key_is_named(tmp_path: Path) -> None:
    config = published_config()
    tensors = published_tensors(config)
    missing = [name for name in tensors if ".up_proj." in name]
    for name in missing:
        tensors[f"{name}.old"] = tensors.pop(name)
    folder = write_published(tmp_path / "published", config, tensors)
    with pytest.raises(ConversionError) as caught:
        convert(folder, tmp_path / "ours")
    assert f"{len(missing)} missing: {', '.join(missing)}; " in str(caught.value)
    assert f"{len(missing)} unexpected: {', '.join(name + '.old' for name in missing)}; " in str(caught.value)


def break_stack(folder: Path) -> None:
    file = folder / "model.safetensors"
    held = tensors_of(folder)
    held["model.layers.1.mlp.experts.down_proj"] = held["model.layers.1.mlp.experts.down_proj"][:3].clone()
    held.pop("model.layers.2.mlp.router.residual.weight")
    save_file(held, file, metadata={"format": "pt"})


def test_a_model_of_ours_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tiny_model(combine="renormalize_nonzero").save_pretrained(tmp_path / "model")
    break_stack(tmp_path / "model")
    message = (
        r"\S+ does not hold the tensors that its config\.json describes; 1 missing: model\.layers\.2\.mlp\.router\."
        r"residual\.weight; 1 misshapen: model\.layers\.1\.mlp\.experts\.down_proj \(is \[3, 32, 48\], expected \[4, 32"
    )
    assert_refused(tmp_path / "model", tmp_path / "published", ConversionError, message)


def test_a_model_of_ours_that_cannot_be_expressed_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    message = r"model\.combine='probabilities' cannot be expressed in the published format"
    assert_refused(tmp_path / "model", tmp_path / "published", ConversionError, message)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ('{"model_type": "MoE++"', "Expecting ',' delimiter"),
        ("[]", "it is no configuration of a 'MoE\\+\\+' model"),
        ('{"model_type": "MoE++"}', "config.json lacks vocab_size"),
        (json.dumps(published_config(num_attention_heads="two")), ".*num_attention_heads"),
    ],
)
def test_a_kept_configuration_that_was_changed_is_refused_before_anything_is_written(
    kept: str, reason: str, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(converted, tmp_path / "ours")
    save_file({}, folder / EXTRAS, {"config": kept})
    monkeypatch.setattr(converter, "appearing", None)
    message = rf"the config\.json kept in \S+{EXTRAS} is damaged: {reason}.*; convert the published model again"
    assert_refused(folder, tmp_path / "back", DataError, message)


@pytest.mark.parametrize("to", ["moepp", "released"])
def test_a_model_in_the_format_asked_for_is_refused(to: Format, converted: Path, tmp_path: Path) -> None:
    folder = converted if to == "moepp" else FIXTURE
    message = rf"\S+ is in the format '{to}' already; copy it, or convert it --to the other one$"
    assert_refused(folder, tmp_path / "new", ConversionError, message, to)


# The destination is whole or not there


@pytest.mark.parametrize("kind", ["a file", "a folder with something in it"])
def test_a_destination_that_holds_something_is_left_as_it_is(kind: str, tmp_path: Path) -> None:
    destination = tmp_path / "ours"
    note = destination if kind == "a file" else destination / "note"
    note.parent.mkdir(exist_ok=True)
    note.write_text("mine")
    assert_refused(FIXTURE, destination, DataError, r"\S+ours exists and is not an empty folder; give a new one$")
    assert note.read_text() == "mine"


def test_an_empty_destination_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for destination in (tmp_path / "empty", tmp_path / "a" / "b"):
        convert(FIXTURE, destination)
        assert (destination / REPORT).is_file()
        assert [path.name for path in destination.parent.glob(".*")] == []


def test_the_destination_appears_in_one_step_when_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    destination = tmp_path / "ours"
    whole: list[set[str]] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        assert not destination.exists()
        whole.append({path.name for path in self.iterdir()})
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    convert(FIXTURE, destination)
    assert whole == [{path.name for path in destination.iterdir()}]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise error

    with pytest.raises(error):
        convert(FIXTURE, tmp_path / "ours", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_no_destination_and_goes_with_the_next_run(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        convert(FIXTURE, tmp_path / "ours", progress=lambda done, total: done > total / 2 and os.kill(os.getpid(), 9))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == 9
    (half,) = tmp_path.iterdir()
    assert list(half.glob("model-*"))
    assert half != tmp_path / "ours"
    convert(FIXTURE, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: writing fails as it does there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert_refused(FIXTURE, tmp_path / "ours", DataError, r"\S+ours could not be written \(.*\) and does not exist")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_too_small_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**10))
    message = r"\S+ours needs 295\.\d\d KiB and 1\.00 KiB are free; make room, or convert to another disk$"
    assert_refused(FIXTURE, tmp_path / "ours", DataError, message)
