"""The routings that benchmarks run at, and the work they time."""

import pytest
import torch

from moepp import MoEConfig
from moepp.bench import capture_work, run_experts, synthetic_work
from moepp.bench.work import exact_share_routing, on_backend, vanilla_twin
from moepp.model import MoEPPForCausalLM, preset


def config(tau: float, ffn: int = 8, **overrides: int) -> MoEConfig:
    return MoEConfig(hidden_size=8, intermediate_size=8, num_ffn_experts=ffn, tau=tau, **overrides)


@pytest.mark.parametrize("tau", [0.1, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("tokens", [5, 64, 1000])
def test_synthetic_routing_has_the_load_of_taus_balance_up_to_rounding(tau: float, tokens: int) -> None:
    moe = config(tau)
    routing = exact_share_routing(moe, tokens, seed=0)
    load = torch.bincount(routing.expert.flatten(), minlength=12).double()
    weight = torch.tensor([tau] * 8 + [1.0] * 4, dtype=torch.float64)
    assert load.sum() == 2 * tokens
    assert (load - 2 * tokens * weight / weight.sum()).abs().max() <= 1


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_synthetic_routing_gives_a_token_different_experts(top_k: int) -> None:
    expert = exact_share_routing(config(0.75, top_k=top_k), 333, seed=1).expert
    assert all(len(set(row)) == top_k for row in expert.tolist())


@pytest.mark.parametrize(("ffn", "zero", "top_k"), [(1, 1, 2), (2, 1, 2), (1, 3, 3), (3, 0, 3)])
@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("tokens", [5, 64])
def test_synthetic_routing_never_gives_a_token_one_expert_twice(
    ffn: int, zero: int, top_k: int, tau: float, tokens: int
) -> None:
    moe = config(tau, ffn, num_constant_experts=0, num_copy_experts=0, num_zero_experts=zero, top_k=top_k)
    expert = exact_share_routing(moe, tokens, seed=1).expert
    assert all(len(set(row)) == top_k for row in expert.tolist())


def test_synthetic_routing_is_a_function_of_its_seed() -> None:
    first, again, other = (exact_share_routing(config(0.5), 100, seed).expert for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_captured_work_is_what_the_layers_did() -> None:
    model = MoEPPForCausalLM(preset("debug"))
    ids = torch.randint(0, 512, (2, 16))
    work = capture_work(model, input_ids=ids)
    routing = model.eval()(input_ids=ids, output_routing=True).routing
    assert len(work) == len(routing) == 2
    for item, expected in zip(work, routing, strict=True):
        assert torch.equal(item.routing.expert, expected.expert)
        with torch.inference_mode():
            again, _ = item.layer(item.x, None if item.layer.router.residual is None else routing[0].logits)
            torch.testing.assert_close(item.layer.apply_experts(item.x, item.routing), again)
    assert not model.model.layers[0].mlp._forward_hooks


def test_capturing_leaves_the_models_mode_as_it_was() -> None:
    model = MoEPPForCausalLM(preset("debug")).train()
    capture_work(model, input_ids=torch.randint(0, 512, (1, 4)))
    assert model.training


def test_ffn_per_token_counts_what_is_kept() -> None:
    item = synthetic_work(capture_work(MoEPPForCausalLM(preset("debug")), input_ids=torch.randint(0, 512, (1, 70))))[0]
    # 4 FFN experts at tau .75 against 4 others: 3/7 of 140 choices are 60, of 70 tokens.
    assert item.ffn_per_token == pytest.approx(60 / 70)
    run_experts([item])


def test_shared_experts_count_as_work_but_not_as_routed_experts() -> None:
    ids = torch.randint(0, 512, (1, 70))
    item, shared = (
        synthetic_work(capture_work(MoEPPForCausalLM(preset("debug", num_shared_experts=n)), input_ids=ids))[0]
        for n in (0, 2)
    )
    assert shared.ffn_per_token == item.ffn_per_token
    assert shared.ffn_flops - item.ffn_flops == 70 * 2 * 6 * 64 * 128
    assert shared.touched_weights - item.touched_weights == 2 * 3 * 64 * 128


def test_other_backends_and_the_vanilla_twin_run_the_layers_shared_experts() -> None:
    model = MoEPPForCausalLM(preset("debug", num_shared_experts=2))
    item = capture_work(model, input_ids=torch.randint(0, 512, (1, 70)))[0]
    assert vanilla_twin(item.layer).shared_experts is item.layer.shared_experts
    with torch.inference_mode():
        exact = item.layer.apply_shared(item.x, item.routing)
        for backend, error in (("reference", 1e-5), ("int8", 0.03)):
            y = on_backend(item.layer, backend).apply_shared(item.x, item.routing)
            assert (y - exact).norm() < error * exact.norm(), backend
