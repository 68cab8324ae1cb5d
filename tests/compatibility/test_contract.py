"""What transformers' own tests ask of every model, and ``tests/model`` does not ask already.

Its ModelTesterMixin and GenerationTesterMixin are not part of the installed package.
"""

import copy
import inspect
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from moepp.model import (
    MoEPPForCausalLM,
    MoEPPForSequenceClassification,
    MoEPPForTokenClassification,
    MoEPPModel,
    account,
)

from ..model.factory import PAD, VOCAB, fill, tiny_config, tiny_model, tokens
from ..tolerances import assert_close

CLASSES = [MoEPPModel, MoEPPForCausalLM, MoEPPForSequenceClassification, MoEPPForTokenClassification]
pytestmark = pytest.mark.filterwarnings("error")


def made(kind: type, **changes: object) -> PreTrainedModel:
    model = kind(tiny_config(**changes)).eval()
    fill(model)
    return model


def main(model: PreTrainedModel, ids: Tensor, **kwargs: object) -> Tensor:
    """The hidden states, logits or scores."""
    with torch.no_grad():
        return model(ids, **kwargs)[0]


@pytest.fixture(params=CLASSES, ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return made(request.param)


def test_forward_takes_ids_and_mask_first(model: PreTrainedModel) -> None:
    names = list(inspect.signature(model.forward).parameters)
    assert names[:5] == ["input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds"]
    assert model.main_input_name == "input_ids"


def test_two_evaluations_give_the_same_bits(model: PreTrainedModel) -> None:
    assert torch.equal(main(model, tokens(2, 9)), main(model, tokens(2, 9)))


def test_embeddings_give_what_their_ids_do(model: PreTrainedModel) -> None:
    ids = tokens(2, 9)
    mask = (ids != PAD).long()
    embeddings = model.get_input_embeddings()(ids)
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeddings, attention_mask=mask)[0], main(model, ids))


def test_tuple_and_output_object_hold_the_same(model: PreTrainedModel) -> None:
    ids, wanted = tokens(2, 9), {"output_hidden_states": True, "use_cache": False}
    with torch.no_grad():
        named, plain = model(ids, **wanted), model(ids, **wanted, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == len(named.to_tuple())
    assert torch.equal(plain[0], named[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[-1], named.hidden_states, strict=True))


def test_hidden_states_and_attentions_have_a_layers_shapes(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")
    out = model(tokens(2, 9), output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in out.hidden_states] == [(2, 9, 32)] * 4
    assert [tuple(a.shape) for a in out.attentions] == [(2, 4, 9, 9)] * 3
    for weights in out.attentions:
        assert_close(weights.sum(-1), torch.ones(2, 4, 9))


def test_saved_weights_come_back_in_torchs_own_format(model: PreTrainedModel, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    fresh = type(model)(model.config).eval()
    assert not torch.equal(main(fresh, tokens(2, 9)), main(model, tokens(2, 9)))
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(main(fresh, tokens(2, 9)), main(model, tokens(2, 9)))


def test_copies_and_pickles_are_independent(model: PreTrainedModel) -> None:
    expected = main(model, tokens(2, 9))  # keeps packed weights, which must not be in the way
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(main(other, tokens(2, 9)), expected)
        other.get_input_embeddings().weight.data.zero_()
        assert torch.equal(main(model, tokens(2, 9)), expected)


def test_a_model_is_made_on_the_meta_device(model: PreTrainedModel) -> None:
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_input_embeddings_may_be_replaced(model: PreTrainedModel) -> None:
    before = main(model, tokens(2, 9))
    model.set_input_embeddings(torch.nn.Embedding(VOCAB, 32))
    assert (main(model, tokens(2, 9)) - before).abs().max() > 0.01


def test_every_parameter_of_a_model_is_counted_by_its_accounting() -> None:
    assert made(MoEPPForCausalLM).num_parameters() == account(tiny_config()).total_parameters


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_resized_embeddings_survive_saving(tied: bool, tmp_path: Path) -> None:
    model, ids = tiny_model(tie_word_embeddings=tied), tokens(2, 9)
    before = main(model, ids)
    model.resize_token_embeddings(VOCAB + 8, mean_resizing=False)
    assert_close(main(model, ids)[..., :VOCAB], before)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == VOCAB + 8
    assert torch.equal(main(loaded, ids), main(model, ids))
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    model.resize_token_embeddings(VOCAB - 8)
    assert main(model, ids.clamp(max=VOCAB - 9)).shape == (2, 9, VOCAB - 8)


def test_configuration_goes_through_json_and_files(tmp_path: Path) -> None:
    config = tiny_config(num_labels=3, top_k=3, tau=0.3)
    config.to_json_file(tmp_path / "config.json")
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    assert (loaded.num_labels, loaded.id2label) == (3, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"})


def test_a_checkpoint_in_shards_gives_the_same_model(tmp_path: Path) -> None:
    model, ids = tiny_model(), tokens(2, 9)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert torch.equal(main(AutoModelForCausalLM.from_pretrained(tmp_path), ids), main(model, ids))


def test_a_part_of_the_configuration_may_be_changed_on_loading(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, router_aux_loss_coef=0.5, num_labels=4)
    assert (loaded.config.router_aux_loss_coef, loaded.config.num_labels) == (0.5, 4)
