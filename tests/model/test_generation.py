"""Generation: the cache, batches of different lengths, sampling, beams, and a ``top_k`` that is not the experts'."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from moepp.model import MoEPPForCausalLM

from .factory import left_padded, tiny_config, tiny_model, tokens

NEW = 8


def generate(model: MoEPPForCausalLM, ids: Tensor, mask: Tensor | None = None, **kwargs: object) -> Tensor:
    """The new tokens alone."""
    mask = torch.ones_like(ids) if mask is None else mask
    out = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, **kwargs)
    return out[:, ids.shape[1] :]


@pytest.mark.parametrize("gating_residual", [True, False])
def test_cached_greedy_generation_equals_uncached(gating_residual: bool) -> None:
    """A token's carried logits (Eq. 6) are its own layers', so that a cache of keys and values is all it takes."""
    model = tiny_model(gating_residual=gating_residual)
    ids = tokens(3, 7)
    cached = generate(model, ids, do_sample=False, use_cache=True)
    assert cached.shape == (3, NEW)
    assert len(cached.unique()) > 3  # else any two models that repeat themselves would agree
    assert torch.equal(cached, generate(model, ids, do_sample=False, use_cache=False))


def test_greedy_generation_is_the_argmax_of_the_logits() -> None:
    model, ids = tiny_model(), tokens(2, 5)
    expected = ids
    for _ in range(NEW):
        with torch.no_grad():
            expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generate(model, ids, do_sample=False), expected[:, 5:])


def test_static_cache_generates_the_same() -> None:
    model, ids = tiny_model(), tokens(2, 5)
    static = generate(model, ids, do_sample=False, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, generate(model, ids, do_sample=False))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_left_padded_batch_generates_what_each_row_does_alone(num_beams: int) -> None:
    model = tiny_model()
    rows = [tokens(1, length, seed=length)[0] for length in (3, 9, 6)]
    together = generate(model, *left_padded(rows), do_sample=False, num_beams=num_beams)
    for row, new in zip(rows, together, strict=True):
        assert torch.equal(generate(model, row[None], do_sample=False, num_beams=num_beams)[0], new)


def test_beams_with_a_cache_equal_beams_without_and_are_no_worse_than_greedy() -> None:
    """The cache is reordered as beams overtake each other."""
    model, ids = tiny_model(), tokens(2, 6)
    beams = generate(model, ids, do_sample=False, num_beams=4)
    assert torch.equal(beams, generate(model, ids, do_sample=False, num_beams=4, use_cache=False))
    greedy = generate(model, ids, do_sample=False)
    assert not torch.equal(beams, greedy)
    assert (log_likelihood(model, ids, beams) >= log_likelihood(model, ids, greedy)).all()


def log_likelihood(model: MoEPPForCausalLM, ids: Tensor, new: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(torch.cat([ids, new], dim=1)).logits[:, ids.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(-1, new[..., None]).sum(dim=(1, 2))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_sampling_is_reproducible_under_a_seed(num_beams: int) -> None:
    model, ids = tiny_model(), tokens(4, 6)

    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return generate(model, ids, do_sample=True, num_beams=num_beams)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_the_experts_top_k_does_not_become_generations(tmp_path: Path) -> None:
    """``config.top_k`` counts experts, and transformers reads generation settings out of configurations."""
    model = tiny_model(top_k=1)
    assert model.generation_config.top_k is None
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved.get("top_k") is None
    assert json.loads((tmp_path / "config.json").read_text())["top_k"] == 1

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    without = AutoModelForCausalLM.from_pretrained(tmp_path)
    for one in (model, loaded, without):
        assert one.generation_config.top_k is None
        assert one.config.top_k == 1
        # Sampling from the single most probable token would give one value.
        torch.manual_seed(0)
        assert len(generate(one, tokens(1, 6).repeat(64, 1), do_sample=True)[:, 0].unique()) > 5


@pytest.mark.parametrize("reloaded", [False, True], ids=["fresh model", "from a checkpoint without the file"])
def test_a_top_k_that_the_user_saves_for_generation_is_kept(reloaded: bool, tmp_path: Path) -> None:
    model = tiny_model()
    if reloaded:
        model.save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").unlink()
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
    model.generation_config.do_sample = True  # transformers refuses to save a top_k without it
    model.generation_config.top_k = 7
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.top_k == 7


def test_special_tokens_of_the_configuration_reach_generation() -> None:
    config = tiny_config(bos_token_id=5, eos_token_id=6)
    generation = MoEPPForCausalLM(config).generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (5, 6, config.pad_token_id)
