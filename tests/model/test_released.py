"""The published checkpoint is loaded as it is, and is the same function as the published code's."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping

from moepp.errors import ConfigError, ConversionError, DataError
from moepp.model import MoEPPConfig, MoEPPForCausalLM, MoEPPModel, load_model, released, released_config

from ..released_factory import (
    FIXTURE,
    published,
    published_config,
    published_shapes,
    tensors_of,
)
from ..released_oracle import forward
from ..tolerances import assert_close

FLAGS = ("moe_use_mixtral_gating", "moe_use_logits_norm", "moe_feature_no_mul_topk", "moe_2layer_gate")
COMBINATIONS = [dict(zip(FLAGS, values, strict=True)) for values in itertools.product([False, True], repeat=4)]
ABSOLUTE = 1e-5
"""What the published code's outputs are compared with, in float32; they are of size 1."""
IDS = [5, 9, 30, 4, 4, 17, 22, 8, 11]


def difference(actual: Tensor, expected: Tensor | np.ndarray) -> float:
    expected = torch.as_tensor(expected)
    assert actual.shape == expected.shape
    return (actual.double() - expected.double()).abs().max().item()


def dense_weights(model: MoEPPForCausalLM, routings: tuple, shape: tuple[int, ...]) -> Tensor:
    """(layers, *shape, E) from the K weights of each token."""
    experts = model.config.moe.layout().num_experts
    dense = [torch.zeros(len(r.logits), experts).scatter_add(1, r.expert, r.weight) for r in routings]
    return torch.stack(dense).view(len(dense), *shape, experts)


def outputs(model: MoEPPForCausalLM, ids: Tensor, **kwargs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, carried router logits and combine weights."""
    with torch.no_grad():
        out = model(ids, output_routing=True, **kwargs)
    carried = torch.stack([r.logits for r in out.routing]).view(len(out.routing), *ids.shape, -1)
    return out.logits, carried, dense_weights(model, out.routing, tuple(ids.shape))


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """The outputs of the published code."""
    return dict(np.load(FIXTURE / "expected.npz"))


def assert_published_outputs(model: MoEPPForCausalLM, expected: dict[str, np.ndarray]) -> None:
    logits, carried, combine = outputs(model, torch.tensor(expected["input_ids"]))
    assert difference(logits, expected["logits"]) <= ABSOLUTE
    assert difference(carried, expected["router_logits"]) <= ABSOLUTE
    assert difference(combine, expected["combine"]) <= ABSOLUTE
    mask = torch.tensor(expected["padded_attention_mask"])
    logits, carried, _ = outputs(
        model,
        torch.tensor(expected["padded_input_ids"]),
        attention_mask=mask,
        position_ids=torch.tensor(expected["padded_position_ids"]),
    )
    real = mask.bool()
    assert not real.all()
    assert difference(logits[real], expected["padded_logits"][real]) <= ABSOLUTE
    assert difference(carried[:, real], expected["padded_router_logits"][:, real]) <= ABSOLUTE


# The fixture


@pytest.mark.parametrize("load", [MoEPPForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained, load_model])
def test_outputs_of_the_published_code_are_reproduced(load: Callable, expected: dict[str, np.ndarray]) -> None:
    model = load(FIXTURE)
    assert type(model) is MoEPPForCausalLM
    assert_published_outputs(model, expected)


def test_the_oracle_reproduces_the_published_codes_outputs(expected: dict[str, np.ndarray]) -> None:
    """What the other cases are judged by is judged here."""
    config = json.loads((FIXTURE / "config.json").read_text())
    result = forward(tensors_of(FIXTURE), config, expected["input_ids"][0].tolist())
    assert difference(result.logits, expected["logits"][0]) <= ABSOLUTE
    assert difference(result.router_logits, expected["router_logits"][:, 0]) <= ABSOLUTE
    assert difference(result.combine, expected["combine"][:, 0]) <= ABSOLUTE


def test_nothing_is_reported_missing_or_unexpected() -> None:
    """Layer 0's unused matrix included."""
    _, report = MoEPPForCausalLM.from_pretrained(FIXTURE, output_loading_info=True)
    assert {key: list(found) for key, found in report.items()} == {key: [] for key in report}


@pytest.mark.parametrize("load", [MoEPPModel.from_pretrained, AutoModel.from_pretrained])
def test_the_model_without_a_head_is_the_same_model(load: Callable, expected: dict[str, np.ndarray]) -> None:
    base, whole = load(FIXTURE), MoEPPForCausalLM.from_pretrained(FIXTURE)
    assert type(base) is MoEPPModel
    ids = torch.tensor(expected["input_ids"])
    with torch.no_grad():
        assert torch.equal(base(ids).last_hidden_state, whole.model(ids).last_hidden_state)


def test_auto_config_gives_ours() -> None:
    config = AutoConfig.from_pretrained(FIXTURE)
    assert type(config) is MoEPPConfig
    assert config.to_diff_dict() == MoEPPConfig.from_pretrained(FIXTURE).to_diff_dict()


def test_generation_settings_are_the_published_ones() -> None:
    settings = MoEPPForCausalLM.from_pretrained(FIXTURE).generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 0)
    assert settings.top_k is None


# Every combination of flags


def assert_same_function(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    result = forward(tensors_of(folder), config, IDS)
    assert result.margin > 1e-3
    logits, carried, combine = outputs(MoEPPForCausalLM.from_pretrained(folder), torch.tensor([IDS]))
    assert difference(logits[0], result.logits) <= ABSOLUTE
    assert difference(carried[:, 0], result.router_logits) <= ABSOLUTE
    assert difference(combine[:, 0], result.combine) <= ABSOLUTE


@pytest.mark.parametrize("flags", COMBINATIONS, ids=lambda f: "-".join(n[4:] for n in f if f[n]) or "none")
def test_every_combination_of_flags_is_the_same_function(flags: dict[str, bool], tmp_path: Path) -> None:
    form = "pickled" if flags["moe_2layer_gate"] else "safetensors"
    assert_same_function(published(tmp_path, form=form, **flags))


OTHERS: dict[str, dict] = {
    "defaults of the class": dict.fromkeys((*FLAGS, "moe_gate_norm_std", "moe_expert_interval", "rope_theta")),
    "another deviation": {"moe_gate_norm_std": 2.5},
    "ntk": {"rope_scaling": {"type": "ntk", "factor": 4.0}},
    "another base": {"rope_theta": 500.0},
    "as many key heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "another activation named": {"hidden_act": "gelu"},
    "twelve experts": {"num_experts": [16]},
    "one FFN expert": {"num_experts": [5]},
    "tied": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("form", ["pickled", "safetensors"])
@pytest.mark.parametrize("case", OTHERS)
def test_other_fields_are_the_same_function(case: str, form: str, tmp_path: Path) -> None:
    assert_same_function(published(tmp_path, form=form, **OTHERS[case]))


@pytest.mark.parametrize(("form", "shards"), [("pickled", 1), ("safetensors", 1), ("pickled", 7)])
def test_any_number_of_shards_is_the_same_function(form: str, shards: int, tmp_path: Path) -> None:
    assert_same_function(published(tmp_path, form=form, shards=shards))


def test_bfloat16_weights_give_the_exact_function_of_them_up_to_rounding(tmp_path: Path) -> None:
    """Where theirs and ours round differently is in docs/released.md; both round what the oracle does not."""
    folder = published(tmp_path, torch_dtype="bfloat16", seed=10)
    config = json.loads((folder / "config.json").read_text())
    result = forward(tensors_of(folder), config, IDS)
    assert result.margin > 0.05  # of normalised scores: no rounding changes a choice
    model = MoEPPForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    logits, carried, combine = outputs(model, torch.tensor([IDS]))
    assert carried.dtype == torch.float32
    assert_close(logits[0], result.logits, like=torch.bfloat16)
    assert_close(carried[:, 0], result.router_logits, like=torch.bfloat16)
    assert ((combine[:, 0] > 0) == (result.combine > 0)).all()


# What is saved is ours


def saved_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def test_what_is_saved_is_in_our_layout_and_loads_again(tmp_path: Path) -> None:
    model = MoEPPForCausalLM.from_pretrained(FIXTURE)
    model.save_pretrained(tmp_path)
    assert saved_names(tmp_path) == set(model.state_dict())
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "moepp"
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    again.save_pretrained(tmp_path / "again")
    assert saved_names(tmp_path / "again") == saved_names(tmp_path)


def test_a_fresh_model_is_saved_in_our_layout(tmp_path: Path) -> None:
    """transformers would undo the registered conversion here."""
    model = MoEPPForCausalLM(MoEPPConfig.from_pretrained(FIXTURE))
    assert get_model_conversion_mapping(model)
    model.save_pretrained(tmp_path)
    assert saved_names(tmp_path) == set(model.state_dict())


# The table of keys


@pytest.mark.parametrize("gate", [False, True])
def test_the_table_names_every_tensor_of_both_sides(gate: bool) -> None:
    published_form = published_config(moe_2layer_gate=gate, num_experts=[9])
    config = MoEPPConfig.from_dict(released_config.from_published(published_form))
    table = list(released.places(config))
    assert {place.published: place.shape for place in table} == published_shapes(published_form)
    with torch.device("meta"):
        ours = {name: tuple(tensor.shape) for name, tensor in MoEPPForCausalLM(config).state_dict().items()}
    stacks: dict[str, tuple[int, ...]] = {}
    for place in table:
        if place.ours is not None:
            stacks[place.ours] = place.shape if place.row is None else (place.row + 1, *place.shape)
    assert stacks == ours
    assert [place.published for place in table if place.ours is None] == [released.UNUSED]


# Bad folders


def edited(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda held: [held.pop(name, None) for name in names])


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    for file in folder.glob("*.bin"):
        held = torch.load(file, weights_only=True)
        change(held)
        torch.save(held, file)


def truncate(folder: Path) -> None:
    file = folder / "pytorch_model-00002-of-00003.bin"
    file.write_bytes(file.read_bytes()[:5000])


class Touches:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        import os

        return os.mkdir, (str(self.path),)


def run_code(folder: Path) -> None:
    torch.save({"lm_head.weight": Touches(folder / "ran")}, folder / "pytorch_model-00003-of-00003.bin")


DOES_NOT = r"\S+ does not hold the tensors that its config\.json describes; "
EXPERT = r"model\.layers\.{}\.mlp\.moe\.experts\.experts\.{}\."
WRONG: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "shard cut off": (
        truncate,
        DataError,
        r"\S+pytorch_model-00002-of-00003\.bin cannot be read \(.*\): it is damaged",
    ),
    "shard missing": (
        *(lambda folder: (folder / "pytorch_model-00002-of-00003.bin").unlink(), DataError),
        r"\S+pytorch_model\.bin\.index\.json points to pytorch_model-00002-of-00003\.bin, which does not exist; down",
    ),
    "shard that runs code": (
        *(run_code, DataError),
        r"\S+pytorch_model-00003-of-00003\.bin asks to run \S+mkdir, which .*; nothing was run, and it is refused$",
    ),
    "tensors missing": (
        *(without("model.norm.weight", "model.layers.0.mlp.moe.experts.experts.1.down_proj.weight"), ConversionError),
        DOES_NOT + rf"2 missing: {EXPERT.format(0, 1)}down_proj\.weight, model\.norm\.weight; restore the config\.json",
    ),
    "a layer too many": (edited(num_hidden_layers=3), ConversionError, DOES_NOT + r"18 missing: model\.layers\.2\."),
    "a layer too few": (edited(num_hidden_layers=1), ConversionError, DOES_NOT + r"18 unexpected: model\.layers\.1\."),
    "an expert too many": (
        *(edited(num_experts=[8]), ConversionError),
        DOES_NOT
        + r"8 missing: .*; 4 unexpected: .*; \d+ misshapen: \S+wg\.weight \(is \[7, 16\], expected \[8, 16\]\)",
    ),
    "another width": (
        *(edited(intermediate_size=10), ConversionError),
        DOES_NOT + rf"12 misshapen: {EXPERT.format(0, 0)}up_proj\.weight \(is \[24, 16\], expected \[20, 16\]\)",
    ),
    "another gate": (
        *(edited(moe_2layer_gate=True), ConversionError),
        DOES_NOT + r"4 missing: .*wg\.0\.weight, .*; 2 unexpected: \S+gate\.wg\.weight, ",
    ),
    "another architecture": (
        *(edited(architectures=["MixtralForCausalLM"]), ConversionError),
        r"config\.json: model_type='MoE\+\+' with architectures=\['MixtralForCausalLM'\] is not the published MoE\+\+",
    ),
}


@pytest.mark.parametrize("load", [MoEPPForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained, load_model])
@pytest.mark.parametrize("case", WRONG)
def test_a_bad_published_folder_is_refused_in_one_line(case: str, load: Callable, tmp_path: Path) -> None:
    damage, error, message = WRONG[case]
    folder = published(tmp_path / "published")
    damage(folder)
    with pytest.raises(error) as caught:
        load(folder)
    assert re.match(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)
    assert not (folder / "ran").exists()


def test_the_code_of_that_pickle_would_have_run(tmp_path: Path) -> None:
    """Else its refusal would show nothing."""
    folder = published(tmp_path / "published")
    run_code(folder)
    torch.load(folder / "pytorch_model-00003-of-00003.bin", weights_only=False)
    assert (folder / "ran").is_dir()


def test_weights_only_cannot_be_switched_off(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURE, tmp_path / "copy")
    run_code(folder)
    with pytest.raises(ConfigError, match=r"^weights_only=False would let a checkpoint run code; leave it True$"):
        MoEPPForCausalLM.from_pretrained(folder, weights_only=False)
    assert not (folder / "ran").exists()


# What docs/released.md says


def test_the_documented_table_has_every_row() -> None:
    """Names of one line of the table, with ``{q,k,v,o}`` for four."""
    text = (Path(__file__).parents[2] / "docs" / "released.md").read_text(encoding="utf-8")
    table = text.split("## Tensors")[1].split("## ")[0].replace("{l}", "{layer}").replace("{e}", "{expert}")
    for row in released.ROWS:
        published, ours = (re.sub(r"\.[qkvo]_proj", ".{q,k,v,o}_proj", name) for name in (row.published, row.ours))
        (line,) = (line for line in table.splitlines() if f"`{published}`" in line)
        assert "| the same |" in line if published == ours else f"`{ours}" in line.split("|")[2], row
