"""A model's routing on text: against the model run window by window, and against counts."""

import copy
import dataclasses
import tracemalloc
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from moepp.analyze import RoutingTable, Text, collect, collect_stats
from moepp.config import EXPERT_TYPES
from moepp.data import encode, tokenizer_hash, train_tokenizer
from moepp.errors import ConfigError, DataError
from moepp.layers import Routing
from moepp.model import MoEPPForCausalLM, preset

from ..model.factory import tiny_model

WINDOW = 16
WORDS = "the cat and the dog and the cow or a bee in the tree "
TEXTS = [
    Text("long", "prose", WORDS * 4),
    Text("short", "code", "the bee"),
    Text("one", "code", "x"),
    Text("empty", "code", ""),
    Text("other", "prose", "é 🙂 " + WORDS),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([WORDS] * 4, 280)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> MoEPPForCausalLM:
    return tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64).double()


def windows_of(tokenizer: PreTrainedTokenizerFast, window: int = WINDOW) -> list[Tensor]:
    ids = [torch.from_numpy(encode([text.text], tokenizer)[:-1].astype(np.int64)) for text in TEXTS]
    return [piece for document in ids if len(document) for piece in document.split(window)]


def assert_as_run_alone(table: RoutingTable, model: MoEPPForCausalLM, windows: list[Tensor], **kwargs: Any) -> None:
    """The table is what the model says of each window by itself."""
    assert table.num_tokens == sum(map(len, windows))
    start = 0
    for ids in windows:
        rows = slice(start, start := start + len(ids))
        with torch.no_grad():
            out = model(ids.unsqueeze(0), output_routing=True, **kwargs)
        assert table.token[rows].tolist() == ids.tolist()
        assert table.position[rows].tolist() == list(range(len(ids)))
        for layer, routing in enumerate(out.routing):
            np.testing.assert_array_equal(table.expert[rows, layer], routing.expert)
            np.testing.assert_array_equal(table.kept[rows, layer], routing.kept)
            np.testing.assert_allclose(table.weight[rows, layer], routing.weight, rtol=1e-6)
            for place, token in enumerate(routing.probs):
                expected = [float(token[expert]) for expert in routing.expert[place]]
                np.testing.assert_allclose(table.score[start - len(ids) + place, layer], expected, rtol=1e-6)
                entropy = -sum(float(p) * float(p.log()) for p in token)
                assert table.entropy[start - len(ids) + place, layer] == pytest.approx(entropy, rel=1e-6)
        log_probs = out.logits[0].log_softmax(dim=-1)
        expected = [np.nan, *(-float(log_probs[place - 1, ids[place]]) for place in range(1, len(ids)))]
        np.testing.assert_allclose(table.loss[rows], expected, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_token_is_routed_as_in_its_window_alone(
    model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A few tokens' logits at a time; the package's attribute of the module's name is the function.
    monkeypatch.setattr(import_module("moepp.analyze.collect"), "_LOGITS", 7 * model.config.vocab_size)
    done: list[tuple[int, int]] = []
    table = collect(
        *(model, tokenizer, TEXTS), window=WINDOW, batch_size=batch_size, progress=lambda *args: done.append(args)
    )
    windows = windows_of(tokenizer)
    assert {len(window) for window in windows} >= {1, WINDOW}, "full windows and the shortest one"
    assert_as_run_alone(table, model, windows)
    assert len(done) == -(-len(windows) // batch_size)
    assert done[-1] == (table.num_tokens, table.num_tokens)
    assert [count for count, _ in done] == sorted(count for count, _ in done)


def test_the_table_says_where_it_comes_from(model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    table = collect(model, tokenizer, TEXTS, window=WINDOW)
    assert [document.name for document in table.documents] == ["long", "short", "one", "other"]
    assert table.sources == ("prose", "code")
    lengths = [len(encode([text.text], tokenizer)) - 1 for text in TEXTS if text.text]
    assert np.bincount(table.document).tolist() == lengths
    assert list(table.vocabulary) == sorted(set(table.token.tolist()))
    assert table.vocabulary[int(table.token[0])] == "the"
    facts = table.facts
    assert (facts.tau, facts.gating_residual, facts.window, facts.edited) == (0.75, True, WINDOW, False)
    assert (facts.dtype, facts.fingerprint, facts.command) == ("float64", "", "")
    assert facts.tokenizer_hash == tokenizer_hash(tokenizer)
    assert facts.versions["torch"] == torch.__version__
    assert table.layout == model.config.moe.layout()
    assert collect(model, tokenizer, TEXTS).facts.window == 64, "the context, by default"
    assert collect(model, tokenizer, TEXTS).facts.text_hash == facts.text_hash, "windows don't matter"
    assert collect(model, tokenizer, TEXTS[1:]).facts.text_hash != facts.text_hash


def test_a_short_text_needs_no_full_window(model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    table = collect(model, tokenizer, [Text("one", "s", "x")])
    assert table.num_tokens == table.facts.window == 1
    assert np.isnan(table.loss).all()


def test_counts_are_those_of_the_statistics(model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    table = collect(model, tokenizer, TEXTS, window=WINDOW)
    batches = [{"input_ids": window.unsqueeze(0)} for window in windows_of(tokenizer)]
    for layer, stats in enumerate(collect_stats(model, batches)):
        counted = np.bincount(table.expert[:, layer].ravel(), minlength=table.layout.num_experts)
        assert counted.tolist() == stats.assigned.tolist()
        assert table.active("ffn")[:, layer].mean() == pytest.approx(stats.ffn_per_token(table.layout))


@pytest.mark.parametrize("policy", ["probability", "position"])
def test_what_capacity_drops_is_marked_and_padding_takes_no_place(
    model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast, policy: Any
) -> None:
    changes = {"eval_capacity_factor": 0.5, "drop_policy": policy}
    tight = tiny_model(vocab_size=len(tokenizer), **changes).double()
    alone = collect(tight, tokenizer, TEXTS, window=WINDOW, batch_size=1)
    assert_as_run_alone(alone, tight, windows_of(tokenizer))
    dropped = ~alone.kept
    assert dropped.any()
    assert (alone.weight[dropped] == 0).all()
    assert (alone.score[dropped] > 0).all()
    together = collect(tight, tokenizer, TEXTS, window=WINDOW, batch_size=64)
    limit = 0.5 * 2 * together.num_tokens / (0.75 * 4 + 4)  # Eq. 8, without the padding
    for kind, capacity in zip(EXPERT_TYPES, (0.75 * limit, limit, limit, limit), strict=True):
        for expert in together.layout.indices(kind):
            kept = ((together.expert[:, 0] == expert) & together.kept[:, 0]).sum()
            assert kept <= np.ceil(capacity)
    assert (~together.kept[:, 0]).any()


def test_a_vanilla_model_has_ffn_experts_only(tokenizer: PreTrainedTokenizerFast) -> None:
    none = dict.fromkeys(("num_constant_experts", "num_copy_experts", "num_zero_experts"), 0)
    vanilla = tiny_model(vocab_size=len(tokenizer), gating_residual=False, **none).double()
    table = collect(vanilla, tokenizer, TEXTS, window=WINDOW)
    assert_as_run_alone(table, vanilla, windows_of(tokenizer))
    assert (table.active("ffn") == 2).all()
    assert not table.facts.gating_residual


def test_edits_and_biases_are_applied_and_told(model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    def to_nobody(routing: Routing) -> Routing:
        return routing._replace(expert=routing.expert.masked_fill(routing.expert == 2, -1))

    plain = collect(model, tokenizer, TEXTS, window=WINDOW)
    edited = collect(model, tokenizer, TEXTS, window=WINDOW, routing_edit=[to_nobody, None, None])
    was = plain.expert[:, 0] == 2
    assert was.any()
    assert (edited.expert[:, 0][was] == plain.layout.num_experts).all()
    assert not edited.kept[:, 0][was].any()
    assert not edited.score[:, 0][was].any()
    np.testing.assert_array_equal(edited.expert[:, 0][~was], plain.expert[:, 0][~was])
    assert edited.facts.edited
    bias = torch.zeros(plain.layout.num_experts).masked_fill(torch.arange(8) == 3, -torch.inf)
    biased = collect(model, tokenizer, TEXTS, window=WINDOW, selection_bias=bias)
    assert (plain.expert == 3).any()
    assert not (biased.expert == 3).any()
    assert biased.facts.edited
    assert_as_run_alone(biased, model, windows_of(tokenizer), selection_bias=bias)


def test_a_limit_takes_equal_parts_of_the_sources(model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    table = collect(model, tokenizer, TEXTS, max_tokens=20)
    assert table.num_tokens == 20
    code = sum(len(encode([text.text], tokenizer)) - 1 for text in TEXTS if text.source == "code" and text.text)
    assert np.bincount(table.source).tolist() == [20 - code, code]


def test_memory_grows_by_the_table_alone(model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """numpy's memory and Python's; a batch's tensors are torch's, and as large for any text."""

    def peak(documents: int) -> tuple[int, int]:
        texts = [Text(str(n), "s", WORDS * 4) for n in range(documents)]
        tracemalloc.start()
        table = collect(model, tokenizer, texts, window=64, batch_size=4)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most, table.num_tokens

    peak(1)  # what is imported late
    (few, tokens), (many, more_tokens) = peak(8), peak(40)
    table_bytes = 16 + 3 * 4 + 3 * 2 * 10
    assert (many - few) / (more_tokens - tokens) < 1.6 * table_bytes


def test_the_models_mode_stays(model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    training = copy.deepcopy(model).train()
    expected = collect(model, tokenizer, TEXTS)
    table = collect(training, tokenizer, TEXTS)
    assert training.training
    np.testing.assert_array_equal(table.expert, expected.expert)


def tiny_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                        num_attention_heads=1))  # fmt: skip


def tiny_mixtral() -> MixtralForCausalLM:
    return MixtralForCausalLM(MixtralConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                            num_attention_heads=1, num_key_value_heads=1))  # fmt: skip


@pytest.mark.parametrize("other", [tiny_llama, tiny_mixtral])
def test_a_model_without_our_layers_is_one_line(other: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    name = f"{other.__name__.removeprefix('tiny_').capitalize()}ForCausalLM"
    with pytest.raises(ConfigError, match=rf"^analyze needs MoE\+\+ layers, and {name} has none; give a moepp model$"):
        collect(other(), tokenizer, TEXTS)


def test_windows_that_cannot_be_are_refused(model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"^--window=60 is more than the \d+ tokens of the longest document"):
        collect(model, tokenizer, TEXTS[1:], window=60)
    with pytest.raises(ConfigError, match=r"^--window=65 is outside \[1, 64\]"):
        collect(model, tokenizer, TEXTS, window=65)


def test_a_table_of_a_model_comes_back_from_its_file(model: Any, tokenizer: Any, tmp_path: Any) -> None:
    table = collect(model, tokenizer, TEXTS, window=WINDOW)
    table.write(tmp_path / "t.parquet")
    again = RoutingTable.read(tmp_path / "t.parquet")
    assert (again.facts, again.vocabulary, again.documents) == (table.facts, table.vocabulary, table.documents)
    for field in dataclasses.fields(table):
        if isinstance(value := getattr(table, field.name), np.ndarray):
            np.testing.assert_array_equal(getattr(again, field.name), value)


@pytest.fixture
def debug_model() -> MoEPPForCausalLM:
    return MoEPPForCausalLM(preset("debug"))


def test_statistics_add_up_over_batches(debug_model: MoEPPForCausalLM) -> None:
    ids = torch.randint(0, 512, (4, 16))
    together = collect_stats(debug_model, [{"input_ids": ids}])
    apart = collect_stats(debug_model, [{"input_ids": ids[:1]}, {"input_ids": ids[1:]}])
    assert len(together) == 2
    for one, two in zip(together, apart, strict=True):
        assert int(one.tokens) == 64
        assert torch.equal(one.assigned, two.assigned)
        assert torch.equal(one.kept, two.kept)


def test_padding_does_not_count(debug_model: MoEPPForCausalLM) -> None:
    ids = torch.randint(0, 512, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    stats = collect_stats(debug_model, [{"input_ids": ids, "attention_mask": mask}])
    assert [int(layer.tokens) for layer in stats] == [26, 26]
    assert [int(layer.assigned.sum()) for layer in stats] == [52, 52]


def test_the_models_mode_stays_while_statistics_are_taken(debug_model: MoEPPForCausalLM) -> None:
    debug_model.train()
    collect_stats(debug_model, [{"input_ids": torch.randint(0, 512, (1, 4))}])
    assert debug_model.training
