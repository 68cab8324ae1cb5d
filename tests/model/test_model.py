"""The decoder: what its logits depend on, what it returns, and what a study may change."""

import pytest
import torch
from torch import Tensor

from moepp import Routing, RoutingStats
from moepp.model import MoEPPForCausalLM

from ..tolerances import assert_close
from .factory import PAD, VOCAB, left_padded, tiny_model, tokens

FFN, EXPERTS, LAYERS, TOP_K = 4, 8, 3, 2
CONSTANT, COPY, ZERO = 4, 6, 7  # the first expert of each type; before them the FFN experts


def logits(model: MoEPPForCausalLM, ids: Tensor, **kwargs: object) -> Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def routing_of(model: MoEPPForCausalLM, ids: Tensor, **kwargs: object) -> tuple[Routing, ...]:
    with torch.no_grad():
        return model(ids, output_routing=True, **kwargs).routing


def margin(model: MoEPPForCausalLM, ids: Tensor) -> float:
    """How far the nearest choice of an expert is from being another one, in probability."""
    best = [r.probs.sort(dim=-1, descending=True).values[:, TOP_K - 1 : TOP_K + 1] for r in routing_of(model, ids)]
    return min((pair[:, 0] - pair[:, 1]).min().item() for pair in best)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_of_real_tokens_do_not_depend_on_padding_or_on_the_batch(attention: str, side: str) -> None:
    model = tiny_model()
    model.set_attn_implementation(attention)
    rows = [tokens(1, length, seed=length)[0] for length in (5, 11, 8)]
    # Rounding, which does depend on the batch, must not turn a choice around.
    assert min(margin(model, row[None]) for row in rows) > 1e-5
    ids, mask = left_padded(rows)
    if side == "right":
        ids = torch.stack([row.roll(int((row == PAD).sum()) * -1) for row in ids])
        mask = (ids != PAD).long()
    together = logits(model, ids, attention_mask=mask)
    for index, row in enumerate(rows):
        assert_close(together[index][mask[index] == 1], logits(model, row[None])[0], name=f"row {index}")
    crowd = torch.cat([rows[0][None].repeat(2, 1), tokens(3, 5, seed=9)])
    assert_close(logits(model, crowd)[1], logits(model, rows[0][None])[0], name="row among others")


def test_what_stands_in_padding_does_not_matter() -> None:
    model = tiny_model()
    ids, mask = left_padded([tokens(1, length)[0] for length in (5, 9)])
    other = torch.where(mask == 1, ids, 42)
    assert_close(
        logits(model, other, attention_mask=mask)[mask == 1], logits(model, ids, attention_mask=mask)[mask == 1]
    )


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_sdpa_equals_eager_attention(heads: int) -> None:
    model = tiny_model(num_key_value_heads=heads)
    ids, mask = left_padded([tokens(1, length)[0] for length in (5, 9)])
    found = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        found[attention] = logits(model, ids, attention_mask=mask)[mask == 1]
    assert_close(found["sdpa"], found["eager"])


def test_grouped_query_heads_are_repeated_heads() -> None:
    """Two key-value heads for four queries are four of which pairs are equal."""
    grouped, full = tiny_model(num_key_value_heads=2), tiny_model(num_key_value_heads=4)
    weights = grouped.state_dict()
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = tensor.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    assert_close(logits(full, tokens(2, 9)), logits(grouped, tokens(2, 9)))


def test_no_token_sees_its_future() -> None:
    """In evaluation, where no capacity makes tokens compete."""
    model = tiny_model(capacity_factor=0.5)
    ids, changed = tokens(2, 9), tokens(2, 9)
    changed[:, 6:] = tokens(2, 3, seed=5)
    assert_close(logits(model, changed)[:, :6], logits(model, ids)[:, :6])
    assert (logits(model, changed)[:, 6:] - logits(model, ids)[:, 6:]).abs().max() > 0.1


@pytest.mark.parametrize("chunks", [(6, 3), (4, 1, 1, 3)])
def test_chunks_with_a_cache_equal_the_whole(chunks: tuple[int, ...]) -> None:
    """Without position ids too: those of a chunk follow the cache's."""
    model, ids = tiny_model(), tokens(2, 9)
    cache, found = None, []
    for chunk in ids.split(chunks, dim=1):
        with torch.no_grad():
            out = model(chunk, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits)
    assert cache.get_seq_length() == 9
    assert_close(torch.cat(found, dim=1), logits(model, ids))


def test_packed_documents_do_not_see_each_other() -> None:
    """Where position ids start again at 0, another document starts; transformers looks only when there is no cache."""
    model, (first, second) = tiny_model(), (tokens(1, 5, seed=1), tokens(1, 7, seed=2))
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    packed = logits(model, torch.cat([first, second], dim=1), position_ids=positions, use_cache=False)
    assert_close(packed[:, :5], logits(model, first))
    assert_close(packed[:, 5:], logits(model, second))


def test_embeddings_may_be_given_instead_of_ids() -> None:
    model, ids = tiny_model(), tokens(2, 9)
    given = model(inputs_embeds=model.model.embed_tokens(ids)).logits
    assert torch.equal(given, model(ids).logits)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(ids, inputs_embeds=model.model.embed_tokens(ids))
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model()


@pytest.mark.parametrize("keep", [1, 4, torch.tensor([2, 5])], ids=["last", "last four", "chosen"])
def test_logits_to_keep_computes_those_positions_alone(keep: int | Tensor) -> None:
    model, ids = tiny_model(), tokens(2, 9)
    expected = logits(model, ids)[:, -keep:] if isinstance(keep, int) else logits(model, ids)[:, keep]
    assert_close(logits(model, ids, logits_to_keep=keep), expected)


def test_routing_is_returned_on_request_only() -> None:
    model, ids = tiny_model(), tokens(2, 9)
    for labels in (None, ids):
        assert model(ids, labels=labels).routing is None
        assert model(ids, labels=labels, output_routing=False).routing is None
        routing = model(ids, labels=labels, output_routing=True).routing
        assert [type(layer) for layer in routing] == [Routing] * LAYERS
        assert {layer.logits.shape for layer in routing} == {(18, EXPERTS)}


def test_routing_marks_padding_as_not_kept() -> None:
    ids, mask = left_padded([tokens(1, length)[0] for length in (5, 9)])
    for layer in routing_of(tiny_model(), ids, attention_mask=mask):
        assert torch.equal(layer.kept, mask.bool().flatten()[:, None].expand(-1, TOP_K))


def test_hidden_states_and_attentions_are_returned_on_request() -> None:
    model, ids = tiny_model(), tokens(2, 9)
    model.set_attn_implementation("eager")
    out = model(ids, output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in out.hidden_states] == [(2, 9, 32)] * (LAYERS + 1)
    assert torch.equal(out.hidden_states[0], model.model.embed_tokens(ids))
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)
    assert [tuple(a.shape) for a in out.attentions] == [(2, 4, 9, 9)] * LAYERS
    plain = model(ids)
    assert (plain.hidden_states, plain.attentions) == (None, None)


def test_tuple_has_the_outputs_in_order() -> None:
    model, ids = tiny_model(), tokens(2, 9)
    out = model(ids, labels=ids, use_cache=False)
    loss, first, *_ = model(ids, labels=ids, use_cache=False, return_dict=False)
    assert torch.equal(loss, out.loss)
    assert torch.equal(first, out.logits)


def test_vocabulary_may_be_resized() -> None:
    model, ids = tiny_model(), tokens(2, 9)
    before = logits(model, ids)
    model.resize_token_embeddings(VOCAB + 3)
    after = logits(model, ids)
    assert (model.config.vocab_size, after.shape[-1]) == (VOCAB + 3, VOCAB + 3)
    assert_close(after[..., :VOCAB], before)
    assert model(ids, labels=ids).loss.isfinite()


def to_expert(number: int):
    """A study's edit: every token's first choice becomes this expert."""

    def edit(routing: Routing) -> Routing:
        return routing._replace(
            expert=torch.cat([torch.full_like(routing.expert[:, :1], number), routing.expert[:, 1:]], 1)
        )

    return edit


def test_routing_edit_applies_to_every_layer() -> None:
    model, ids = tiny_model(), tokens(2, 9)
    routing = routing_of(model, ids, routing_edit=to_expert(ZERO))
    assert all((layer.expert[:, 0] == ZERO).all() for layer in routing)
    assert (logits(model, ids, routing_edit=to_expert(ZERO)) - logits(model, ids)).abs().max() > 0.1


def test_routing_edit_may_be_one_per_layer() -> None:
    model, ids = tiny_model(), tokens(2, 9)
    plain = routing_of(model, ids)
    routing = routing_of(model, ids, routing_edit=[None, to_expert(ZERO), to_expert(COPY)])
    assert torch.equal(routing[0].expert, plain[0].expert)
    assert (routing[1].expert[:, 0] == ZERO).all()
    assert (routing[2].expert[:, 0] == COPY).all()
    assert_close(logits(model, ids, routing_edit=[None] * LAYERS), logits(model, ids))


def test_routing_edit_comes_before_capacity_and_leaves_the_carried_logits() -> None:
    model, ids = tiny_model(capacity_factor=1.0), tokens(2, 9)
    model.train()

    def edit(routing: Routing) -> Routing:
        return to_expert(ZERO)(routing._replace(logits=routing.logits + 1e3))

    routing = routing_of(model, ids, routing_edit=[edit, None, None])
    plain = routing_of(model, ids)
    assert torch.equal(routing[0].logits, plain[0].logits)
    assert routing[1].logits.abs().max() < 1e3
    stats = RoutingStats.of(routing[0])
    assert stats.assigned[ZERO] >= 18
    # Eq. 8: 18 tokens times K = 2, over .75 · 4 + 4 shares: 36 / 7 rounded up.
    assert stats.kept[ZERO] == 6


@pytest.mark.parametrize("expert", [0, CONSTANT, COPY, ZERO])
def test_selection_bias_of_minus_infinity_disables_an_expert_in_all_layers(expert: int) -> None:
    model, ids = tiny_model(), tokens(4, 12)
    assert all((layer.expert == expert).any() for layer in routing_of(model, ids))
    bias = torch.zeros(EXPERTS)
    bias[expert] = -torch.inf
    for layer in routing_of(model, ids, selection_bias=bias):
        assert not (layer.expert == expert).any()
        assert layer.kept.all()  # another expert takes its place
        assert (layer.probs[:, expert] > 0).all()  # the bias chooses and has no other effect


def test_selection_bias_may_differ_between_layers() -> None:
    model, ids = tiny_model(), tokens(4, 12)
    bias = torch.zeros(LAYERS, EXPERTS)
    bias[1, COPY] = -torch.inf
    bias[2, ZERO] = torch.inf
    plain, biased = routing_of(model, ids), routing_of(model, ids, selection_bias=bias)
    assert torch.equal(biased[0].expert, plain[0].expert)
    assert (plain[1].expert == COPY).any()
    assert not (biased[1].expert == COPY).any()
    assert (biased[2].expert[:, 0] == ZERO).all()
    same = torch.zeros(EXPERTS)
    same[COPY] = -torch.inf
    each = same.expand(LAYERS, -1).contiguous()
    assert torch.equal(logits(model, ids, selection_bias=each), logits(model, ids, selection_bias=same))
