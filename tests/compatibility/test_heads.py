"""Classifying sequences and tokens: losses, padding, and what is loaded from a language model's checkpoint."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments, pipeline

from moepp.data import train_tokenizer
from moepp.errors import ConfigError
from moepp.model import MoEPPForSequenceClassification, MoEPPForTokenClassification, real_tokens

from ..model.factory import PAD, fill, gradients, left_padded, tiny_config, tiny_model, tokens
from ..tolerances import assert_close

LABELS = 3
HEADS = [MoEPPForSequenceClassification, MoEPPForTokenClassification]
ROWS = [tokens(1, length, seed=length)[0] for length in (5, 11, 8)]


def classifier(kind: type = MoEPPForSequenceClassification, **changes: object):
    model = kind(tiny_config(num_labels=LABELS, **changes)).eval()
    fill(model)
    return model


def padded(side: str) -> tuple[Tensor, Tensor]:
    ids, mask = left_padded(ROWS)
    if side == "right":
        ids = torch.stack([row.roll(-int((row == PAD).sum())) for row in ids])
        mask = (ids != PAD).long()
    return ids, mask


@pytest.mark.parametrize(
    ("side", "given"),
    [
        *[(side, given) for side in ("left", "right") for given in ("mask", "embeddings and mask")],
        ("right", "padding token"),  # without a mask, what stands on the left would be read as text
    ],
)
def test_a_sequence_is_scored_at_its_last_real_token(side: str, given: str) -> None:
    model = classifier()
    ids, mask = padded(side)
    expected = torch.stack([model(row[None]).logits[0] for row in ROWS])
    if given == "mask":
        scores = model(ids, attention_mask=mask).logits
    elif given == "embeddings and mask":
        scores = model(inputs_embeds=model.model.embed_tokens(ids), attention_mask=mask).logits
    else:
        scores = model(ids).logits
    assert_close(scores, expected)
    assert expected.std(dim=0).min() > 0.01


def test_sequences_that_nothing_tells_the_end_of_are_refused() -> None:
    model = classifier(pad_token_id=None)
    assert model(tokens(1, 6)).logits.shape == (1, LABELS)
    with pytest.raises(ConfigError, match=r"^model\.pad_token_id=None .* where each of 2 sequences ends; pass"):
        model(tokens(2, 6))


PROBLEMS = {
    "single_label_classification": (torch.tensor([0, 2, 1]), F.cross_entropy),
    "multi_label_classification": (
        torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]]),
        F.binary_cross_entropy_with_logits,
    ),
    "regression": (torch.tensor([[0.1, 2, -1], [3, 0, 0], [1, 1, 1]]), F.mse_loss),
}


@pytest.mark.parametrize(
    ("problem", "named"),
    # Unless the problem is named, three numbers a row are taken for labels.
    [
        *[(problem, True) for problem in PROBLEMS],
        *[(problem, False) for problem in PROBLEMS if problem != "regression"],
    ],
)
def test_each_problem_type_has_its_loss(problem: str, named: bool) -> None:
    labels, function = PROBLEMS[problem]
    model = classifier(problem_type=problem if named else None)
    ids, mask = padded("left")
    out = model(ids, attention_mask=mask, labels=labels)
    assert_close(out.task_loss, function(out.logits, labels))
    assert model.config.problem_type == problem


def test_one_label_is_a_regression() -> None:
    model = MoEPPForSequenceClassification(tiny_config(num_labels=1)).eval()
    labels = torch.tensor([0.5, -1.0])
    out = model(tokens(2, 6), labels=labels)
    assert_close(out.task_loss, F.mse_loss(out.logits[:, 0], labels))


@pytest.mark.parametrize("kind", HEADS)
def test_the_loss_takes_the_balance_losses_along(kind: type) -> None:
    """Eq. 9, padding left out: the same batch as a language model's balance loss."""
    model = classifier(kind, router_aux_loss_coef=0.7).train()
    ids, mask = padded("left")
    labels = torch.tensor([0, 2, 1]) if kind is HEADS[0] else torch.where(mask == 1, ids % LABELS, -100)
    out = model(ids, attention_mask=mask, labels=labels)
    language = tiny_model().train()
    language.model.load_state_dict(model.model.state_dict())
    assert_close(out.balance_loss, language(ids, attention_mask=mask, labels=ids).balance_loss)
    assert_close(out.loss, out.task_loss + 0.7 * out.balance_loss)
    (out.loss - out.task_loss).backward()
    assert gradients(model)["model.layers.2.mlp.router.weight"].abs().max() > 1e-6
    assert model(ids, attention_mask=mask).loss is None


def test_every_token_is_scored_and_those_without_a_label_are_left_out() -> None:
    model = classifier(MoEPPForTokenClassification)
    ids, mask = padded("right")
    labels = torch.where(mask == 1, ids % LABELS, -100)
    out = model(ids, attention_mask=mask, labels=labels)
    assert out.logits.shape == (3, 11, LABELS)
    real = real_tokens(mask, 11)
    assert_close(out.task_loss, F.cross_entropy(out.logits.flatten(0, 1)[real], labels.flatten()[real]))


def test_pipelines_classify() -> None:
    texts = ["the cat sat on the mat", "a dog"]
    tokenizer = train_tokenizer(texts, 270)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = classifier(**sizes)
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer)
    for text, found in zip(texts, pipe(texts, batch_size=2), strict=True):
        chances = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        assert found["label"] == f"LABEL_{chances.argmax()}"
        assert abs(found["score"] - chances.max().item()) < 1e-4
    pipe = pipeline("token-classification", model=classifier(HEADS[1], **sizes), tokenizer=tokenizer)
    assert [one["word"] for one in pipe("a dog")] == tokenizer.tokenize("a dog")


def test_a_language_models_checkpoint_gives_a_classifier_its_decoder(tmp_path: Path) -> None:
    language = tiny_model()
    language.save_pretrained(tmp_path)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=LABELS, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"score.weight"}
    ids = tokens(2, 6)
    with torch.no_grad():
        assert torch.equal(model.model(ids)[0], language.model(ids)[0])


def test_another_number_of_labels_takes_everything_but_the_scores(tmp_path: Path) -> None:
    saved = classifier()
    saved.save_pretrained(tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    model = load(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert model(tokens(2, 6)).logits.shape == (2, 5)
    assert torch.equal(model.model.embed_tokens.weight, saved.model.embed_tokens.weight)


def test_trainer_divides_the_mean_losses_of_a_classifier_by_its_accumulation_steps(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, gradient_accumulation_steps=2)
    assert not Trainer(classifier(), arguments).model_accepts_loss_kwargs
    assert Trainer(tiny_model(), arguments).model_accepts_loss_kwargs
