"""``attn_implementation``; and that padding and the batch change nothing, whatever kernel runs the experts."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from transformers.integrations import flex_attention

from ..model.factory import left_padded, tiny_model, tokens
from ..model.kernels import RUNS
from ..tolerances import assert_close

TOP_K, MARGIN = 2, 0.01
LENGTHS = (5, 8)


@pytest.fixture(scope="module")
def rows() -> list[Tensor]:
    """A sequence of each length in which every choice of expert is clear, so that no rounding turns one around.

    Of 400 random ones, that whose second choice is furthest before the third, in probability, at its worst token.
    """
    model = tiny_model()
    found = []
    for length in LENGTHS:
        ids = tokens(400, length, seed=length)
        with torch.no_grad():
            routing = model(ids, output_routing=True).routing
        best = torch.stack([layer.probs.topk(TOP_K + 1).values[:, -2:] for layer in routing])
        gap = (best[..., 0] - best[..., 1]).amin(dim=0).view(ids.shape).amin(dim=1)
        assert gap.max() > MARGIN
        found.append(ids[gap.argmax()])
    return found


def batch(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    ids, mask = left_padded(rows)
    if side == "right":
        shifts = [int(count) for count in (mask == 0).sum(dim=1)]
        ids, mask = (torch.stack([r.roll(-s) for r, s in zip(t, shifts, strict=True)]) for t in (ids, mask))
    return ids, mask


@pytest.mark.parametrize("implementation", RUNS)
def test_neither_padding_nor_the_batch_changes_a_token(
    implementation: str, rows: list[Tensor], calls: Counter[str]
) -> None:
    """A row's logits in a padded batch, and among others of its length, are those it has alone."""
    model = tiny_model(experts_implementation=implementation)
    with torch.no_grad():
        alone = [model(row[None]).logits[0] for row in rows]
        for side in ("left", "right"):
            ids, mask = batch(rows, side)
            together = model(ids, attention_mask=mask).logits
            for index, expected in enumerate(alone):
                assert_close(together[index][mask[index] == 1], expected, name=f"row {index} padded on the {side}")
        crowd = torch.cat([tokens(3, LENGTHS[0], seed=9), rows[0][None], rows[0][None].flip(1)])
        assert_close(model(crowd).logits[3], alone[0], name="row among others")
    forwards = len(rows) + 2 + 1
    assert calls == {name: count * forwards for name, count in RUNS[implementation].items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_every_attention_gives_the_same_logits(attention: str, side: str, rows: list[Tensor]) -> None:
    ids, mask = batch(rows, side)
    with torch.no_grad():
        expected = tiny_model(attn_implementation="eager")(ids, attention_mask=mask).logits
    model = tiny_model()
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation(attention)
    # flex_attention compiles itself, which takes half a minute; uncompiled it computes the same.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        found = model(ids, attention_mask=mask).logits
    assert_close(found[mask == 1], expected[mask == 1])


def test_flex_attention_is_what_runs_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = flex_attention.compile_friendly_flex_attention
    monkeypatch.setattr(
        flex_attention, "compile_friendly_flex_attention", lambda *a, **k: seen.append(1) or real(*a, **k)
    )
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        tiny_model(attn_implementation="flex_attention")(tokens(1, 4))
    assert len(seen) == 3
