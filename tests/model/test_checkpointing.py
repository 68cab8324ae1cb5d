"""Gradient checkpointing runs layers twice: nothing may be lost on the way, and nothing counted twice."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from moepp import RoutingStats
from moepp.model import MoEPPForCausalLM

from ..tolerances import assert_close
from .factory import gradients, left_padded, tiny_model, tokens

# Its successor does not exist in the oldest transformers that we support.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")

TOP_K, LENGTHS = 2, (12, 7)
KINDS: dict[str, dict] = {
    "paper": {"capacity_factor": 1.1},
    "tight": {"capacity_factor": 0.5},
    "released": {"gate": "tanh_mlp", "logits_std": 1.0, "combine": "renormalize_nonzero"},
}


class Step(NamedTuple):
    losses: Tensor
    gradients: dict[str, Tensor]
    stats: list[RoutingStats]
    layers_run: int


def step(model: MoEPPForCausalLM) -> Step:
    """One forward and backward pass on a padded batch."""
    ids, mask = left_padded([tokens(1, length, seed=length)[0] for length in LENGTHS])
    runs = []
    # Before and not after: a recomputation may stop as soon as it has what the backward pass needs.
    hooks = [layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1)) for layer in model.model.layers]
    out = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100), output_routing=True)
    stats = [RoutingStats.of(routing, mask=mask.bool().flatten()).detach() for routing in out.routing]
    out.loss.backward()
    for hook in hooks:
        hook.remove()
    losses = torch.cat([torch.stack([out.loss, out.lm_loss]), out.layer_balance_loss]).detach()
    return Step(losses, gradients(model), stats, len(runs))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_loss_no_gradient_and_no_statistics(kind: str, use_reentrant: bool) -> None:
    # Balance losses that weigh as much as the language-modelling loss: a router that lost their gradient would show.
    model = tiny_model(router_aux_loss_coef=1.0, **KINDS[kind]).train()
    plain = step(model)
    assert plain.layers_run == 3
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed = step(model)
    assert checkpointed.layers_run == 6  # each layer again in the backward pass: checkpointing did happen

    assert_close(checkpointed.losses, plain.losses, name="losses")
    for name, gradient in plain.gradients.items():
        assert gradient.any(), name
        assert_close(checkpointed.gradients[name], gradient, name=f"gradient of {name}")
    for ours, theirs in zip(checkpointed.stats, plain.stats, strict=True):
        assert torch.equal(ours.assigned, theirs.assigned)
        assert torch.equal(ours.kept, theirs.kept)
        assert_close(ours.prob_sum, theirs.prob_sum)
        assert ours.assigned.sum() == TOP_K * sum(LENGTHS)  # once, though the router ran twice


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_carried_logits_take_their_gradient_through_checkpoints(use_reentrant: bool) -> None:
    """The last layer's balance loss reaches the first layer's router by Eq. 6 alone, where nothing else can carry it.

    With reentrant checkpointing a tensor that is nested in an argument loses its gradient without a word.
    """
    model = tiny_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    ids = tokens(2, 12)
    found = {}
    for residual in (True, False):
        if not residual:
            for layer in model.model.layers[1:]:
                torch.nn.init.zeros_(layer.mlp.router.residual.weight)
        # Only the choice depends on the first router then: no expert gets any weight, so no output does.
        out = model(ids, labels=ids, routing_edit=lambda routing: routing._replace(weight=routing.weight * 0))
        out.layer_balance_loss[-1].backward()
        found[residual] = gradients(model)["model.layers.0.mlp.router.weight"]
    assert found[True].abs().max() > 1e-6
    assert not found[False].any()


def test_checkpointing_is_off_in_evaluation() -> None:
    model = tiny_model()
    model.gradient_checkpointing_enable()
    assert step(model.eval()).layers_run == 3
