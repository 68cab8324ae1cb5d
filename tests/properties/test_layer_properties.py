"""Properties that hold for every layer, on configurations and tokens that hypothesis draws."""

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moepp import MoEConfig, Routing, RoutingStats

from ..factory import obedient_moe, randn, random_moe
from ..oracle import capacities
from ..tolerances import assert_close

few = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)
token_counts = st.integers(1, 40)


@st.composite
def configs(draw: st.DrawFn, **fixed: object) -> MoEConfig:
    counts = {f"num_{kind}_experts": draw(st.integers(0, 3)) for kind in ("constant", "copy", "zero")}
    ffn = draw(st.integers(1, 4))
    experts = ffn + sum(counts.values())
    values: dict = {
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_ffn_experts": ffn,
        **counts,
        "top_k": draw(st.integers(1, min(3, experts))),
        "tau": draw(st.sampled_from([0.1, 0.25, 0.75, 1.0])),
        "capacity_factor": draw(st.sampled_from([0.3, 0.7, 1.0, 1.1, 2.0])),
        "drop_policy": draw(st.sampled_from(["probability", "position"])),
        "gate": draw(st.sampled_from(["linear", "tanh_mlp"])),
        # One logit has no standard deviation, and two always have the same up to their order.
        "logits_std": draw(st.sampled_from([None, 1.0])) if experts > 2 else None,
        "combine": draw(st.sampled_from(["probabilities", "renormalize", "renormalize_nonzero", "softmax_topk"])),
    }
    return MoEConfig(**(values | fixed))


@few
@given(configs(capacity_factor=None), token_counts, seeds)
def test_permuting_tokens_permutes_outputs(config: MoEConfig, tokens: int, seed: int) -> None:
    moe = random_moe(config, seed=seed)
    x, previous = randn(tokens, 4, seed=seed + 1), randn(tokens, config.layout().num_experts, seed=seed + 2)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    assert_close(moe(x[order], previous[order])[0], moe(x, previous)[0][order])


@few
@given(configs(capacity_factor=None), token_counts, seeds)
def test_permuting_experts_of_one_type_leaves_the_output_unchanged(config: MoEConfig, tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layout = config.layout()
    groups = [torch.tensor(layout.indices(kind), dtype=torch.long) for kind in ("ffn", "constant", "copy", "zero")]
    order = torch.cat([group[torch.randperm(len(group), generator=generator)] for group in groups])
    moe, other = random_moe(config, seed=seed), random_moe(config, seed=seed)
    with torch.no_grad():
        other.router.weight.copy_(moe.router.weight[order])
        other.router.residual.weight.copy_(moe.router.residual.weight[order][:, order])
        ffn, constant = order[: layout.ffn], order[layout.ffn : layout.ffn + layout.constant] - layout.ffn
        other.experts.gate_up_proj.copy_(moe.experts.gate_up_proj[ffn])
        other.experts.down_proj.copy_(moe.experts.down_proj[ffn])
        if layout.constant:
            other.zero_computation.constant.copy_(moe.zero_computation.constant[constant])
            other.zero_computation.mix.copy_(moe.zero_computation.mix[constant])
    x, previous = randn(tokens, 4, seed=seed + 1), randn(tokens, layout.num_experts, seed=seed + 2)
    output, routing = other(x, previous[:, order])
    expected, expected_routing = moe(x, previous)
    assert_close(output, expected)
    assert torch.equal(order[routing.expert], expected_routing.expert)


@few
@given(configs(), token_counts, seeds, st.booleans())
def test_capacity_is_never_exceeded_and_drops_nothing_below_it(
    config: MoEConfig, tokens: int, seed: int, masked: bool
) -> None:
    moe = random_moe(config, seed=seed)
    mask = randn(tokens, seed=seed + 3) > 0 if masked else None
    real = tokens if mask is None else int(mask.sum())
    x, previous = randn(tokens, 4, seed=seed + 1), randn(tokens, config.layout().num_experts, seed=seed + 2)
    stats = RoutingStats.of(moe(x, previous, mask=mask)[1], mask=mask)
    assert config.capacity_factor is not None
    bounds = torch.tensor(capacities(config, config.capacity_factor, config.top_k * real))
    # Exactly the smaller of load and bound: an expert is filled before anything is dropped.
    assert stats.kept.tolist() == torch.minimum(stats.assigned, bounds).tolist()


@few
@given(configs(), token_counts, seeds)
def test_capacity_changes_no_weight_that_it_keeps(config: MoEConfig, tokens: int, seed: int) -> None:
    x, previous = randn(tokens, 4, seed=seed + 1), randn(tokens, config.layout().num_experts, seed=seed + 2)
    limited = random_moe(config, seed=seed)(x, previous)[1]
    free = random_moe(dataclasses.replace(config, capacity_factor=None), seed=seed)(x, previous)[1]
    assert free.kept.all()
    for name in ("logits", "probs", "expert"):
        assert torch.equal(getattr(limited, name), getattr(free, name)), name
    assert torch.equal(limited.weight, torch.where(limited.kept, free.weight, 0.0))


@few
@given(configs(), token_counts, seeds)
def test_padding_changes_nothing_for_real_tokens(config: MoEConfig, tokens: int, seed: int) -> None:
    moe = random_moe(config, seed=seed)
    x, previous = randn(tokens, 4, seed=seed + 1), randn(tokens, config.layout().num_experts, seed=seed + 2)
    mask = randn(tokens, seed=seed + 3) > 0
    output, routing = moe(x, previous, mask=mask)
    alone, alone_routing = moe(x[mask], previous[mask])
    assert_close(output[mask], alone)
    assert torch.equal(routing.kept[mask], alone_routing.kept)
    assert not output[~mask].any()
    assert not routing.weight[~mask].any()


@few
@given(configs(), token_counts, token_counts, seeds)
def test_stats_are_additive(config: MoEConfig, first: int, second: int, seed: int) -> None:
    moe, experts = random_moe(config, seed=seed), config.layout().num_experts
    a, b = (moe(randn(t, 4, seed=seed + t), randn(t, experts, seed=seed + 9 + t))[1] for t in (first, second))
    both = RoutingStats.of(Routing(*(torch.cat(pair) for pair in zip(a, b, strict=True))))
    total = RoutingStats.of(a) + RoutingStats.of(b)
    for name in ("assigned", "kept", "tokens"):
        assert torch.equal(getattr(both, name), getattr(total, name)), name
    assert_close(both.prob_sum, total.prob_sum)
    assert int(both.tokens) == first + second
    assert int(both.assigned.sum()) == config.top_k * (first + second)


@few
@given(
    configs(num_ffn_experts=8, num_constant_experts=2, num_copy_experts=1, num_zero_experts=1),
    st.integers(1, 64),
)
def test_bounds_sum_to_gamma_times_all_assignments(config: MoEConfig, tokens: int) -> None:
    """Seen from outside: send all tokens to one expert at a time and count what it keeps."""
    config = dataclasses.replace(config, top_k=1)
    moe, gamma = obedient_moe(config), config.capacity_factor
    assert gamma is not None
    observed = 0
    for expert in range(12):
        previous = torch.zeros(tokens, 12, dtype=torch.float64)
        previous[:, expert] = 5.0
        observed += int(moe(randn(tokens, 4, seed=0), previous)[1].kept.sum())
    # The bounds sum to gamma K T (Eq. 8), and rounding up adds less than 1 per expert. K = 1 and tau * 8 + 4 > gamma
    # keep each bound at or below the number of tokens, so what an expert keeps is its bound.
    exact = gamma * config.top_k * tokens
    assert exact - 1e-9 <= observed < exact + 12
