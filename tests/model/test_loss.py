"""The loss of Eq. 9, its parts, and what gradient accumulation makes of it."""

import pytest
import torch
from torch import Tensor

from moepp import RoutingStats, balance_loss
from moepp.model import MoEPPForCausalLM

from ..tolerances import assert_close
from .factory import PAD, gradients, left_padded, tiny_model, tokens

BETA = 0.5  # not the paper's 0.01, beside which a wrong balance loss would hide in the rounding
LENGTHS = (12, 5, 9)
IGNORED = -100


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labels that count, token by token: position t predicts label t + 1."""
    losses = [
        -logits[b, t].log_softmax(-1)[labels[b, t + 1]]
        for b in range(labels.shape[0])
        for t in range(labels.shape[1] - 1)
        if labels[b, t + 1] != IGNORED
    ]
    return torch.stack(losses).mean()


def padded_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels; padding has no label."""
    ids, mask = left_padded([tokens(1, length, seed=length)[0] for length in LENGTHS])
    return ids, mask, ids.masked_fill(mask == 0, IGNORED)


@pytest.mark.parametrize("capacity_factor", [None, 0.7])
def test_loss_is_cross_entropy_plus_beta_times_the_layers_balance_losses(capacity_factor: float | None) -> None:
    model = tiny_model(router_aux_loss_coef=BETA, capacity_factor=capacity_factor).train()
    ids = tokens(2, 12)
    out = model(ids, labels=ids, output_routing=True)
    layers = torch.stack([balance_loss(routing, model.config.moe) for routing in out.routing])
    assert len(layers) == 3
    assert_close(out.lm_loss, cross_entropy(out.logits, ids), name="lm_loss")
    assert_close(out.layer_balance_loss, layers, name="layer_balance_loss")
    assert_close(out.balance_loss, layers.sum(), name="balance_loss")
    assert_close(out.loss, out.lm_loss + BETA * layers.sum(), name="loss")
    dropped = sum(int((~routing.kept).sum()) for routing in out.routing)
    assert (dropped > 0) == (capacity_factor is not None)


def test_padding_counts_in_neither_part_of_the_loss() -> None:
    model = tiny_model(router_aux_loss_coef=BETA)
    ids, mask, labels = padded_batch()
    out = model(ids, attention_mask=mask, labels=labels, output_routing=True)
    real = mask.bool().flatten()
    layers = [balance_loss(routing, model.config.moe, mask=real) for routing in out.routing]
    unmasked = [balance_loss(routing, model.config.moe) for routing in out.routing]
    assert_close(out.lm_loss, cross_entropy(out.logits, labels), name="lm_loss")
    assert_close(out.balance_loss, torch.stack(layers).sum(), name="balance_loss")
    assert (torch.stack(unmasked).sum() - out.balance_loss).abs() > 0.01
    # The same tokens without padding, row by row, have the same choices to be counted.
    alone = [model(row[None], output_routing=True).routing for row in (ids[b][mask[b] == 1] for b in range(3))]
    for index, routing in enumerate(out.routing):
        counted = RoutingStats.of(routing, mask=real)
        one, two, three = (RoutingStats.of(routings[index]) for routings in alone)
        assert torch.equal(counted.assigned, (one + two + three).assigned)
        assert all(torch.equal(*pair) for pair in zip(out.routing_stats[index], counted, strict=True))
        assert counted.tokens == sum(LENGTHS)


def test_tokens_without_a_label_count_in_the_balance_loss() -> None:
    """Those of a prompt, say: they are no padding, and experts serve them."""
    model = tiny_model(router_aux_loss_coef=BETA)
    ids = tokens(2, 12)
    labels = ids.clone()
    labels[:, :6] = IGNORED
    out = model(ids, labels=labels)
    assert_close(out.lm_loss, cross_entropy(out.logits, labels), name="lm_loss")
    assert torch.equal(out.balance_loss, model(ids, labels=ids).balance_loss)


def test_padding_of_the_same_batch_changes_no_part_of_the_loss() -> None:
    model = tiny_model(router_aux_loss_coef=BETA, capacity_factor=0.7).train()
    ids = tokens(2, 9)
    plain = model(ids, labels=ids)
    first = ids.clone()
    first[:, 0] = IGNORED  # after left padding, padding would be asked to predict it
    for padding in ((4, 0), (0, 4)):
        padded = torch.nn.functional.pad(ids, padding, value=PAD)
        labels = torch.nn.functional.pad(first, padding, value=IGNORED)
        out = model(padded, attention_mask=(padded != PAD).long(), labels=labels)
        for name in ("loss", "lm_loss", "balance_loss", "layer_balance_loss"):
            assert_close(getattr(out, name), getattr(plain, name), name=name)


def test_without_labels_there_is_no_loss() -> None:
    out = tiny_model()(tokens(2, 12))
    assert (out.loss, out.lm_loss, out.balance_loss, out.layer_balance_loss, out.routing_stats) == (None,) * 5


def test_beta_zero_leaves_the_language_modelling_loss() -> None:
    ids = tokens(2, 12)
    out = tiny_model(router_aux_loss_coef=0.0)(ids, labels=ids)
    assert torch.equal(out.loss, out.lm_loss)
    assert out.balance_loss > 0


def accumulate(model: MoEPPForCausalLM, batches: list[tuple[Tensor, Tensor]], total: int | Tensor) -> Tensor:
    """The sum of the micro-batches' losses; their gradients are accumulated in the model."""
    losses = [model(ids, labels=labels, num_items_in_batch=total).loss for ids, labels in batches]
    for loss in losses:
        loss.backward()
    return torch.stack(losses).sum().detach()


def items(labels: Tensor) -> int:
    """Labels that are predicted: the first of a row is not."""
    return int((labels[:, 1:] != IGNORED).sum())


@pytest.mark.parametrize("as_tensor", [False, True], ids=["int", "tensor"])
def test_accumulated_equal_micro_batches_give_the_mean_of_their_losses(as_tensor: bool) -> None:
    """Beta is not multiplied by the number of micro-batches, nor divided by the number of labels."""
    model = tiny_model(router_aux_loss_coef=BETA).train()
    batches = [(ids, ids) for ids in (tokens(2, 12, seed=seed) for seed in range(4))]
    total = sum(items(labels) for _, labels in batches)
    loss = accumulate(model, batches, torch.tensor(total) if as_tensor else total)
    accumulated = gradients(model)

    mean = torch.stack([model(ids, labels=labels).loss for ids, labels in batches]).mean()
    mean.backward()
    assert_close(loss, mean, name="loss")
    for name, gradient in gradients(model).items():
        assert_close(accumulated[name], gradient, name=f"gradient of {name}")


def test_accumulated_unequal_micro_batches_are_weighted_by_their_labels_in_both_terms() -> None:
    """The language-modelling part is the whole batch's mean; the balance losses get the same weights: they sum to 1."""
    model = tiny_model(router_aux_loss_coef=BETA).train()
    batches = []
    for seed, without in enumerate((0, 3, 11, 7)):
        ids = tokens(2, 12, seed=seed)
        labels = ids.clone()
        labels[0, :without] = IGNORED
        batches.append((ids, labels))
    counts = [items(labels) for _, labels in batches]
    total = sum(counts)
    assert len(set(counts)) == 4
    loss = accumulate(model, batches, total)
    accumulated = gradients(model)

    whole = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    lm_loss = model(whole[0], labels=whole[1]).lm_loss  # of rows that know nothing of each other: nothing is dropped
    balance = sum(
        n / total * model(ids, labels=labels).balance_loss for n, (ids, labels) in zip(counts, batches, strict=True)
    )
    expected = lm_loss + BETA * balance
    expected.backward()
    assert_close(loss, expected, name="loss")
    for name, gradient in gradients(model).items():
        assert_close(accumulated[name], gradient, name=f"gradient of {name}")


def test_a_micro_batch_without_labels_adds_nothing() -> None:
    model = tiny_model(router_aux_loss_coef=BETA)
    ids = tokens(2, 12)
    out = model(ids, labels=torch.full_like(ids, IGNORED), num_items_in_batch=100)
    assert out.loss == 0


def test_reported_parts_of_the_loss_are_per_forward_pass() -> None:
    """``balance_loss`` is for reading: unlike ``loss``, it is not this pass's share of an accumulated batch."""
    model = tiny_model(router_aux_loss_coef=BETA)
    ids = tokens(2, 12)
    alone, shared = model(ids, labels=ids), model(ids, labels=ids, num_items_in_batch=88)
    assert torch.equal(shared.balance_loss, alone.balance_loss)
    assert_close(shared.loss, alone.loss / 4)


@pytest.mark.parametrize("total", [None, 88])
def test_labels_that_are_shifted_already_give_the_same_loss(total: int | None) -> None:
    """As context parallelism hands them over; and given as None they are not there."""
    model = tiny_model(router_aux_loss_coef=BETA)
    ids = tokens(2, 12)
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORED)
    expected = model(ids, labels=ids, num_items_in_batch=total).loss
    for shift_labels in (shifted, None):
        given = model(ids, labels=ids, shift_labels=shift_labels, num_items_in_batch=total).loss
        assert_close(given, expected)
