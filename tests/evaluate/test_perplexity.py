"""Sliding windows against a loop that predicts one token at a time, in float64, and against the harness's own."""

import math

import pytest
import torch
from torch import Tensor

from moepp.data import encode
from moepp.errors import ConfigError
from moepp.evaluate import TextLoss, text_loss, token_losses
from moepp.evaluate.perplexity import windows

from ..model.factory import tiny_model, tokens
from .conftest import ANIMALS

pytest.importorskip("lm_eval")  # where `make gpu` only collects

from moepp.evaluate.language_model import RoutedLM

TEXTS = [". ".join(f"{animal} {choice}" for choice in choices) for animal, choices in ANIMALS.items()]
FEW = [TEXTS[0][:120], "Owl", "", "é ü", TEXTS[3]]
DOCUMENTS = [*TEXTS, "Owl", "", "\n".join(TEXTS), "é ü"]


def naive(model, tokenizer, document: str, window: int, stride: int) -> tuple[float, int]:
    """Nats and tokens of one document; every token by a forward pass of its own."""
    ids = torch.from_numpy(encode([document], tokenizer).astype("int64")).roll(1)  # its end stands before it
    nats, last = 0.0, len(ids) - 1
    for target in range(1, last + 1):
        # Windows end at window, window + stride, …; the token belongs to the first that reaches it.
        end = min(last, window + max(0, math.ceil((target - window) / stride)) * stride)
        context = ids[max(0, end - window) : target]
        nats -= float(model(context.unsqueeze(0)).logits[0, -1].log_softmax(-1)[ids[target]])
    return nats, last


@pytest.mark.parametrize(("window", "stride"), [(48, None), (48, 48), (16, 5), (7, 7), (5, 1), (1, 1)])
def test_every_token_is_predicted_once_from_the_context_its_window_gives_it(
    model, tokenizer, window: int, stride: int | None
) -> None:
    exact = tiny_model(model.config).double()
    found = text_loss(exact, tokenizer, FEW, window=window, stride=stride, batch_size=3)
    with torch.no_grad():
        expected = [naive(exact, tokenizer, text, window, stride or window // 2) for text in FEW if text]
    lengths = [count for _, count in expected]
    assert min(lengths) < 5 < 48 < max(lengths), "documents shorter and longer than a window"
    assert found.tokens == sum(lengths)
    assert found.nats == pytest.approx(sum(nats for nats, _ in expected), rel=1e-6)
    assert (found.documents, found.bytes) == (len(FEW) - 1, len("".join(FEW).encode()))


@pytest.mark.parametrize("window", [1, 2, 7])
@pytest.mark.parametrize("length", [0, 1, 6, 7, 8, 13, 14, 15, 50])
def test_windows_score_every_token_once_and_give_it_at_least_the_overlap(window: int, length: int) -> None:
    ids = torch.arange(length + 1)
    for stride in range(1, window + 1):
        scored: list[int] = []
        for inputs, targets in windows(ids, window, stride):
            assert len(inputs) == len(targets) <= window
            here = targets != -100
            assert torch.equal(targets[here], inputs[here] + 1), "targets are the inputs moved on by one"
            if scored:
                assert int(here.int().argmax()) >= window - stride
            scored += targets[here].tolist()
        assert scored == list(range(1, length + 1))


def test_windows_side_by_side_are_the_harness_rolling_log_likelihood(model, tokenizer) -> None:
    from lm_eval.api.instance import Instance

    lm = RoutedLM(model, tokenizer, batch_size=2)
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0, ("text", 0, 1)) for text in DOCUMENTS if text]
    rolling = lm.loglikelihood_rolling(requests, disable_tqdm=True)
    assert text_loss(model, tokenizer, DOCUMENTS, stride=48).nats == pytest.approx(-sum(rolling), rel=1e-5)


def test_padding_changes_nothing(model, tokenizer) -> None:
    alone = [text_loss(model, tokenizer, [text]).nats for text in DOCUMENTS if text]
    assert text_loss(model, tokenizer, DOCUMENTS, batch_size=64).nats == pytest.approx(sum(alone), rel=1e-5)


def test_losses_of_parts_add_up(model, tokenizer) -> None:
    parts = sum((text_loss(model, tokenizer, [text]) for text in TEXTS), TextLoss(0, 0, 0, 0.0))
    whole = text_loss(model, tokenizer, TEXTS)
    assert (parts.documents, parts.tokens, parts.bytes) == (whole.documents, whole.tokens, whole.bytes)
    assert parts.nats == pytest.approx(whole.nats, rel=1e-5)


def test_units() -> None:
    loss = TextLoss(documents=1, tokens=4, bytes=8, nats=8 * math.log(2))
    assert loss.bits_per_byte == pytest.approx(1.0)
    assert loss.loss == pytest.approx(2 * math.log(2))
    assert loss.perplexity == pytest.approx(4.0)


def test_token_losses_are_those_of_the_models_own_loss(model) -> None:
    ids: Tensor = tokens(2, 9)
    ours = token_losses(model, ids[:, :-1], ids[:, 1:]).mean()
    assert ours.item() == pytest.approx(model(ids, labels=ids).lm_loss.item(), rel=1e-5)


def test_progress_ends_at_the_number_of_tokens(model, tokenizer) -> None:
    told: list[tuple[int, int]] = []
    found = text_loss(model, tokenizer, TEXTS, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (found.tokens, found.tokens)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 49}, r"--window=49 is outside \[1, 48\], the model's context"),
        ({"window": 0}, r"--window=0 is outside"),
        ({"window": 8, "stride": 9}, r"--stride=9 is outside \[1, 8\], the window"),
        ({"stride": 0}, r"--stride=0 is outside"),
    ],
)
def test_a_window_that_cannot_work_is_refused(model, tokenizer, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        text_loss(model, tokenizer, TEXTS, **options)
