"""A vanilla MoE is a configuration: with ``combine="renormalize"`` and no capacity it is Mixtral, number for number.

In float64 too the two agree to float32's digits: Mixtral takes its softmax in float32, whatever the model's dtype.
"""

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from moepp import MoE, balance_loss
from moepp.model import MoEPPConfig, MoEPPForCausalLM

from ..factory import randn
from ..tolerances import assert_close
from .factory import fill, gradients, tiny_config, tiny_model, tokens

EXPERTS = 4
VANILLA = {
    "num_constant_experts": 0,
    "num_copy_experts": 0,
    "num_zero_experts": 0,
    "gating_residual": False,
    "combine": "renormalize",
}


def mixtral_config(config: MoEPPConfig) -> MixtralConfig:
    """Mixtral of the same sizes."""
    same = {name: getattr(config, name) for name in MixtralConfig.__annotations__ if hasattr(config, name)}
    mixtral = MixtralConfig(**same)
    mixtral._experts_implementation = "eager"
    return mixtral


def to_mixtral(name: str) -> str:
    return name.replace(".mlp.router.weight", ".mlp.gate.weight")


def mixtral_twin(model: MoEPPForCausalLM) -> MixtralForCausalLM:
    """Mixtral with the weights of a vanilla model: every one of them, and no others."""
    twin = MixtralForCausalLM(mixtral_config(model.config)).eval()
    twin.load_state_dict({to_mixtral(name): tensor for name, tensor in model.state_dict().items()}, strict=True)
    return twin


def blocks(**changes: object) -> tuple[MoE, MixtralSparseMoeBlock]:
    """Our layer and Mixtral's in float64, with equal routers and FFN experts."""
    config = tiny_config(**(VANILLA | changes))
    ours, theirs = MoE(config.moe, backend="reference").double(), MixtralSparseMoeBlock(mixtral_config(config)).double()
    fill(ours)
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight[:EXPERTS])
        theirs.experts.gate_up_proj.copy_(ours.experts.gate_up_proj)
        theirs.experts.down_proj.copy_(ours.experts.down_proj)
    return ours, theirs


def outputs(ours: MoE, theirs: MixtralSparseMoeBlock, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
    x = randn(2, 9, 32, seed=1)
    return ours(x, previous)[0], theirs(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_vanilla_layer_equals_mixtrals_block_in_output_and_gradients(top_k: int, dtype: torch.dtype) -> None:
    ours, theirs = (block.to(dtype) for block in blocks(top_k=top_k))
    x = randn(2, 9, 32, seed=1, dtype=dtype).requires_grad_()
    x_theirs = x.detach().clone().requires_grad_()
    cotangent = randn(2, 9, 32, seed=2, dtype=dtype)
    y, expected = ours(x)[0], theirs(x_theirs)
    assert_close(y, expected, like=torch.float32, name="output")
    (y * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    assert_close(x.grad, x_theirs.grad, like=torch.float32, name="gradient of x")
    reference = gradients(theirs)
    for name, gradient in gradients(ours).items():
        twin = reference[name.replace("router.", "gate.")]
        if top_k == 1 and name == "router.weight":
            # Renormalised, a single weight is 1 whatever the router says: both gradients are rounding.
            assert max(gradient.abs().max(), twin.abs().max()) < 1e-5
            continue
        assert twin.any()
        assert_close(gradient, twin, like=torch.float32, name=f"gradient of {name}")


def test_probabilities_of_eq_1_are_not_mixtral() -> None:
    ours, theirs = outputs(*blocks(combine="probabilities"))
    assert (ours - theirs).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["constant", "copy", "zero"])
def test_a_zero_computation_expert_is_not_mixtral(kind: str) -> None:
    ours, theirs = outputs(*blocks(**{f"num_{kind}_experts": 1}))
    assert (ours - theirs).abs().max() > 0.1


def test_a_gating_residual_is_not_mixtral_unless_its_matrix_is_zero() -> None:
    previous = randn(18, EXPERTS, seed=3)
    ours, theirs = blocks(gating_residual=True)
    y, expected = outputs(ours, theirs, previous)
    assert (y - expected).abs().max() > 0.1
    torch.nn.init.zeros_(ours.router.residual.weight)
    y, expected = outputs(ours, theirs, previous)
    assert_close(y, expected, like=torch.float32)


def test_capacity_in_training_is_not_mixtral() -> None:
    ours, theirs = blocks(capacity_factor=0.5)
    y, expected = outputs(ours.train(), theirs)
    assert (y - expected).abs().max() > 0.1
    y, expected = outputs(ours.eval(), theirs)
    assert_close(y, expected, like=torch.float32)


def test_vanilla_model_equals_mixtral_for_causal_lm() -> None:
    """Grouped-query heads included; and in gradients, through the language-modelling loss."""
    ours = tiny_model(**VANILLA)
    assert ours.config.num_key_value_heads < ours.config.num_attention_heads
    theirs = mixtral_twin(ours)
    ids = tokens(2, 12)
    out, expected = ours(ids, labels=ids), theirs(ids, labels=ids)
    assert_close(out.logits, expected.logits, name="logits")
    assert_close(out.lm_loss, expected.loss, name="loss")
    out.lm_loss.backward()
    expected.loss.backward()
    reference = gradients(theirs)
    for name, gradient in gradients(ours).items():
        assert_close(gradient, reference[to_mixtral(name)], name=f"gradient of {name}")


@pytest.mark.parametrize("changes", [{"gating_residual": True}, {"combine": "probabilities"}, {"num_copy_experts": 1}])
def test_moepp_model_is_not_mixtral(changes: dict) -> None:
    """What the vanilla model leaves out does change the logits, so the equality above is not blind to it."""
    vanilla, changed = tiny_model(**VANILLA), tiny_model(**(VANILLA | changes))
    weights, known = vanilla.state_dict(), changed.state_dict()
    # Where a router has rows for more experts, the rows of the FFN experts are the same.
    with torch.no_grad():
        for name, tensor in weights.items():
            known[name][: len(tensor)].copy_(tensor)
    ids = tokens(2, 12)
    with torch.no_grad():
        expected = mixtral_twin(vanilla)(ids).logits
        assert (changed(ids).logits - expected).abs().max() > 0.1


@pytest.mark.parametrize("masked", [False, True], ids=["all real", "padded"])
def test_one_layers_balance_loss_is_mixtrals_without_its_factor_n(masked: bool) -> None:
    """Eq. 7 has no factor N. With more layers the two part ways: Mixtral pools them before multiplying."""
    ours = tiny_model(**VANILLA, num_hidden_layers=1)
    ids = tokens(2, 12)
    mask = torch.ones_like(ids)
    if masked:
        mask[0, :5] = 0
    with torch.no_grad():
        out = ours(ids, attention_mask=mask, labels=ids)
        expected = mixtral_twin(ours)(ids, attention_mask=mask, labels=ids, output_router_logits=True).aux_loss
    assert_close(out.balance_loss * EXPERTS, expected)


def test_tau_changes_the_balance_loss_only_where_there_are_zero_computation_experts() -> None:
    x = randn(64, 32, seed=4)

    def loss(tau: float, **changes: object) -> Tensor:
        moe, _ = blocks(tau=tau, **changes)
        return balance_loss(moe(x)[1], moe.config)

    assert torch.equal(loss(0.75), loss(0.1))
    for kind in ("constant", "copy", "zero"):
        assert loss(0.75, **{f"num_{kind}_experts": 1}) > loss(0.1, **{f"num_{kind}_experts": 1})
