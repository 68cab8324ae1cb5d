"""``generate`` and what is built on it: every cache gives the same tokens, and so does every way to get them faster."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, pipeline

from moepp.data import train_tokenizer
from moepp.model import MoEPPForCausalLM

from ..model.factory import left_padded, tiny_model, tokens

NEW = 8
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


@pytest.fixture(scope="module")
def model() -> MoEPPForCausalLM:
    return tiny_model()


def new_tokens(model: MoEPPForCausalLM, ids: Tensor, **kwargs: object) -> Tensor:
    mask = (ids != model.config.pad_token_id).long()
    return model.generate(ids, attention_mask=mask, **(GREEDY | kwargs))[:, ids.shape[1] :]


def test_pipeline_generates_text() -> None:
    texts = ["the cat sat on the mat", "a dog"]
    tokenizer = train_tokenizer(texts, 270)
    model = tiny_model(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    tokenizer.padding_side = "left"
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    settings = {"return_full_text": False, **GREEDY}
    alone = [pipe(text, **settings)[0]["generated_text"] for text in texts]
    together = [one[0]["generated_text"] for one in pipe(texts, batch_size=2, **settings)]
    assert together == alone
    for text, words in zip(texts, alone, strict=True):
        new = new_tokens(model, tokenizer(text, return_tensors="pt").input_ids)[0]
        assert words == tokenizer.decode(new, skip_special_tokens=True)
    assert alone[0] != alone[1]


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beams", "sampling"])
def test_static_cache_gives_the_dynamic_ones_tokens(model: MoEPPForCausalLM, how: dict) -> None:
    ids, _ = left_padded([tokens(1, length, seed=length)[0] for length in (4, 7)])

    def generate(**kwargs: object) -> Tensor:
        torch.manual_seed(0)
        return new_tokens(model, ids, **how, **kwargs)

    dynamic = generate()
    assert torch.equal(generate(cache_implementation="static", disable_compile=True), dynamic)
    assert len(dynamic.unique()) > 4


def test_generation_goes_on_from_a_cache(model: MoEPPForCausalLM) -> None:
    ids = tokens(2, 5)
    first = model.generate(ids, **(GREEDY | {"max_new_tokens": 3}), return_dict_in_generate=True)
    assert first.past_key_values.get_seq_length() == 5 + 3 - 1
    rest = model.generate(first.sequences, past_key_values=first.past_key_values, **(GREEDY | {"max_new_tokens": 5}))
    assert torch.equal(rest[:, 5:], new_tokens(model, ids))


def test_generation_starts_from_embeddings(model: MoEPPForCausalLM) -> None:
    ids = tokens(2, 5)
    embeddings = model.model.embed_tokens(ids)
    assert torch.equal(model.generate(inputs_embeds=embeddings, **GREEDY), new_tokens(model, ids))
    assert not torch.equal(model.generate(inputs_embeds=embeddings.flip(1), **GREEDY), new_tokens(model, ids))


def test_scores_logits_attentions_and_hidden_states_come_with_the_tokens() -> None:
    model = tiny_model(attn_implementation="eager")
    wanted = ("scores", "logits", "attentions", "hidden_states")
    out = model.generate(
        tokens(2, 5), **GREEDY, return_dict_in_generate=True, **{f"output_{name}": True for name in wanted}
    )
    assert [len(out[name]) for name in wanted] == [NEW] * 4
    assert torch.equal(torch.stack(out.logits, dim=1).argmax(-1), out.sequences[:, 5:])
    assert {len(step) for step in out.attentions} == {3}
    assert out.attentions[-1][0].shape == (2, 4, 1, 5 + NEW - 1)
    assert out.hidden_states[-1][-1].shape == (2, 1, 32)


@pytest.mark.parametrize("help_", ["assistant", "prompt lookup"])
def test_guessing_ahead_changes_no_token(model: MoEPPForCausalLM, help_: str) -> None:
    """And runs the model less often than there are tokens, where the guesses are its own."""
    ids = tokens(1, 4).repeat(1, 3)
    chosen = {"prompt_lookup_num_tokens": 3} if help_ == "prompt lookup" else {"assistant_model": tiny_model()}
    runs = []
    hook = model.register_forward_pre_hook(lambda *_: runs.append(1))
    guessed = new_tokens(model, ids, max_new_tokens=24, **chosen)
    hook.remove()
    assert torch.equal(guessed, new_tokens(model, ids, max_new_tokens=24))
    assert len(runs) < 24


def test_quantised_cache_generates_with_optimum_quanto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values beyond the last few in 4 bits: near the exact logits, not at them."""
    from optimum.quanto.library.extensions.cpp import ext

    def unpack(packed: Tensor, bits: int) -> Tensor:
        return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])

    # Its C++ would be compiled first, for a minute.
    monkeypatch.setattr(ext, "_lib", SimpleNamespace(unpack=unpack))
    # Rows of the cache are quantised in groups of 64 numbers.
    model, ids = tiny_model(head_dim=64), tokens(2, 24)
    wanted = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    exact = model.generate(ids, **wanted)
    settings = {"backend": "quanto", "nbits": 4, "residual_length": 4}
    found = model.generate(ids, **wanted, cache_implementation="quantized", cache_config=settings)
    assert type(found.past_key_values).__name__ == "QuantizedCache"
    error = (found.logits[1] - exact.logits[1]).abs().max() / exact.logits[1].abs().max()
    assert 0 < error < 0.3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_continuous_batching_gives_the_tokens_of_plain_generation(attention: str, calls: Counter[str]) -> None:
    """Paged attention on a CPU: prompts of different lengths come and go in one running batch."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model = tiny_model()
    prompts = [tokens(1, length, seed=length)[0].tolist() for length in (3, 9, 6, 5)]
    expected = [new_tokens(model, torch.tensor([prompt]))[0].tolist() for prompt in prompts]
    model.set_attn_implementation(attention)
    calls.clear()
    # No end of sequence is -1 to the scheduler; a cache sized by hand, or it takes most of the memory that is free.
    settings = GenerationConfig(**GREEDY, eos_token_id=-1, pad_token_id=model.config.pad_token_id)
    room = ContinuousBatchingConfig(page_size=16, num_blocks=16, max_batch_tokens=16)
    found = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=room)
    assert [one.error for one in found.values()] == [None] * len(prompts)
    assert sorted(one.generated_tokens for one in found.values()) == sorted(expected)
    forwards = calls["onednn"] / 3
    assert calls.total() == calls["onednn"]
    assert NEW <= forwards < NEW * len(prompts), "the prompts ran together"
