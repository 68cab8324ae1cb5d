"""Small cases worked by hand. Most use a layer that takes its logits from ``previous``, so that ``previous = log(p)``
prescribes each token's probabilities and every number below can be checked on paper."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moepp import MoE, MoEConfig, Routing

from ..factory import fill, obedient_moe, randn, random_moe
from ..tolerances import assert_close

FFN, CONSTANT, COPY, ZERO = range(4)
LN3 = math.log(3.0)
ONE_OF_EACH = MoEConfig(
    hidden_size=2, intermediate_size=1, num_ffn_experts=1, num_constant_experts=1, capacity_factor=None
)


def log_probs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def one_of_each(**changes: object) -> MoE:
    """FFN: gate (1, 0), up (0, 1), down (1, 2). Constant: v = (8, 4), alpha = softmax(0, x_0)."""
    moe = obedient_moe(dataclasses.replace(ONE_OF_EACH, **changes))
    fill(moe.experts.gate_up_proj, [1.0, 0.0, 0.0, 1.0])
    fill(moe.experts.down_proj, [1.0, 2.0])
    fill(moe.zero_computation.constant, [8.0, 4.0])
    fill(moe.zero_computation.mix, [0.0, 0.0, 1.0, 0.0])
    return moe


def test_each_expert_type_by_hand() -> None:
    x = torch.tensor([[LN3, 2.0]] * 3, dtype=torch.float64)
    output, routing = one_of_each()(
        x, log_probs([0.5, 0.25, 0.15, 0.1], [0.05, 0.1, 0.6, 0.25], [0.1, 0.3, 0.05, 0.55])
    )
    # FFN(x): gate = ln 3, SiLU = .75 ln 3 as sigmoid(ln 3) = 3/4; up = 2; so 1.5 ln 3 times (1, 2).
    # Constant(x): alpha = softmax(0, ln 3) = (1/4, 3/4); so (ln 3, 2)/4 + 3/4 (8, 4) = (ln 3 / 4 + 6, 3.5).
    expected = [
        [0.5 * 1.5 * LN3 + 0.25 * (LN3 / 4 + 6), 0.5 * 3.0 * LN3 + 0.25 * 3.5],  # token 0: FFN and constant
        [0.6 * LN3, 0.6 * 2.0],  # token 1: copy and zero
        [0.3 * (LN3 / 4 + 6), 0.3 * 3.5],  # token 2: zero and constant
    ]
    assert_close(output, torch.tensor(expected, dtype=torch.float64))
    assert routing.expert.tolist() == [[FFN, CONSTANT], [COPY, ZERO], [ZERO, CONSTANT]]
    # Eq. 1 takes the probabilities as they are: a token's weights need not sum to 1.
    assert_close(routing.weight, torch.tensor([[0.5, 0.25], [0.6, 0.25], [0.55, 0.3]], dtype=torch.float64))


def test_input_scale_reaches_experts_and_not_the_router() -> None:
    moe = one_of_each(top_k=1, input_scale=2.0)
    x = torch.tensor([[LN3 / 2, 1.0]] * 3, dtype=torch.float64)  # twice this is the token of the test above
    previous = log_probs([0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1])
    output, routing = moe(x, previous)
    expected = [[0.7 * 1.5 * LN3, 0.7 * 3.0 * LN3], [0.7 * (LN3 / 4 + 6), 0.7 * 3.5], [0.7 * LN3, 0.7 * 2.0]]
    assert_close(output, torch.tensor(expected, dtype=torch.float64))
    fill(moe.router.weight, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert_close(moe(x, previous)[1].logits[:, 0] - routing.logits[:, 0], x[:, 0])


def test_gating_residual_adds_the_mapped_previous_logits() -> None:
    moe = one_of_each(logits_std=1.0)
    fill(moe.router.weight, [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    # Row e of W^g makes logit e: swap the first two, double the third, drop the fourth.
    fill(moe.router.residual.weight, [0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0])
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    previous = torch.tensor([[10.0, 20.0, 30.0, 40.0]], dtype=torch.float64)
    # W x = (1, 2, 3, 0), W^g previous = (20, 10, 60, 0). What is carried is this sum, although logits_std is set.
    routing = moe(x, previous)[1]
    assert routing.logits.tolist() == [[21.0, 12.0, 63.0, 0.0]]
    # The scores behind probs have standard deviation 1 (unbiased), so their logs do too.
    assert_close(routing.probs.log().std(dim=-1), torch.ones(1, dtype=torch.float64))
    assert moe(x)[1].logits.tolist() == [[1.0, 2.0, 3.0, 0.0]]


PROBS = ([0.5, 0.1, 0.1, 0.3], [0.1, 0.2, 0.3, 0.4])  # chosen: FFN and zero; zero and copy
COMBINED = {
    "probabilities": [[0.5, 0.3], [0.4, 0.3]],
    "renormalize": [[5 / 8, 3 / 8], [4 / 7, 3 / 7]],
    "renormalize_nonzero": [[1.0, 0.0], [0.0, 1.0]],
    # softmax of two logs is their ratio: the same as renormalize as long as probs are softmax(scores).
    "softmax_topk": [[5 / 8, 3 / 8], [4 / 7, 3 / 7]],
}


@pytest.mark.parametrize("combine", COMBINED)
def test_combine_by_hand(combine: str) -> None:
    routing = one_of_each(combine=combine)(randn(2, 2, seed=0), log_probs(*PROBS))[1]
    assert routing.expert.tolist() == [[FFN, ZERO], [ZERO, COPY]]
    assert_close(routing.weight, torch.tensor(COMBINED[combine], dtype=torch.float64))


@pytest.mark.parametrize(("combine", "weight"), list(zip(COMBINED, (0.5, 1.0, 1.0, 1.0), strict=True)))
def test_combine_with_one_chosen_expert(combine: str, weight: float) -> None:
    routing = one_of_each(combine=combine, top_k=1)(randn(1, 2, seed=0), log_probs(PROBS[0]))[1]
    assert_close(routing.weight, torch.tensor([[weight]], dtype=torch.float64))


@pytest.mark.parametrize("zeros", [1, 2])
def test_renormalize_nonzero_gives_zero_when_all_chosen_are_zero_experts(zeros: int) -> None:
    moe = one_of_each(combine="renormalize_nonzero", top_k=zeros, num_zero_experts=zeros)
    x = randn(1, 2, seed=0).requires_grad_()
    previous = log_probs([0.1, 0.1, 0.1] + [0.7 / zeros] * zeros).requires_grad_()
    output, routing = moe(x, previous)
    assert routing.expert.tolist() == [list(range(ZERO, ZERO + zeros))]
    assert routing.weight.tolist() == [[0.0] * zeros]
    assert output.tolist() == [[0.0, 0.0]]
    (output.sum() + routing.weight.sum()).backward()
    gradients = [x.grad, previous.grad, *(p.grad for p in moe.parameters())]
    assert all(g.isfinite().all() for g in gradients if g is not None)


FULL = MoEConfig(
    hidden_size=4,
    intermediate_size=4,
    num_ffn_experts=1,
    num_constant_experts=0,
    num_copy_experts=1,
    num_zero_experts=0,
    tau=1.0,
    top_k=1,
    capacity_factor=0.6,
)


@pytest.mark.parametrize(("policy", "stays"), [("probability", 1), ("position", 0)])
def test_full_expert_keeps_the_most_probable_or_the_first(policy: str, stays: int) -> None:
    # Three assignments over two experts, gamma .6, tau 1: C = .6 * 3 / 2 = .9 each, rounded up to 1.
    moe = obedient_moe(dataclasses.replace(FULL, drop_policy=policy))
    output, routing = moe(randn(3, 4, seed=0), log_probs([0.6, 0.4], [0.9, 0.1], [0.7, 0.3]))
    assert routing.expert.tolist() == [[0], [0], [0]]
    assert routing.kept.flatten().tolist() == [t == stays for t in range(3)]
    weights = [p if t == stays else 0.0 for t, p in enumerate((0.6, 0.9, 0.7))]
    assert_close(routing.weight.flatten(), torch.tensor(weights, dtype=torch.float64))
    assert [bool(row.any()) for row in output] == [t == stays for t in range(3)]


def test_drop_policy_probability_ranks_by_probability_not_by_combine_weight() -> None:
    # K = 2 of three experts: C = .6 * 4 / 3 = .8, rounded up to 1. Renormalised, token 1 weighs expert 0 more
    # (.4 / .7 = .571 against .5 / .9 = .556), yet token 0 gives it the larger probability and keeps it.
    moe = obedient_moe(dataclasses.replace(FULL, num_zero_experts=1, top_k=2, combine="renormalize"))
    routing = moe(randn(2, 4, seed=0), log_probs([0.5, 0.4, 0.1], [0.4, 0.3, 0.3 - 1e-9]))[1]
    assert routing.expert.tolist() == [[0, 1], [0, 1]]
    assert routing.kept.tolist() == [[True, True], [False, False]]
    assert_close(routing.weight, torch.tensor([[5 / 9, 4 / 9], [0.0, 0.0]], dtype=torch.float64))


def test_weights_of_kept_assignments_are_not_renormalised() -> None:
    # C = .6 * 4 / 3 = .8, rounded up to 1: token 1 loses expert 0 to token 0, and keeps expert 2 at 3/7.
    moe = obedient_moe(dataclasses.replace(FULL, num_zero_experts=1, top_k=2, combine="renormalize"))
    routing = moe(randn(2, 4, seed=0), log_probs([0.5, 0.4, 0.1], [0.4, 0.2, 0.3]))[1]
    assert routing.expert.tolist() == [[0, 1], [0, 2]]
    assert routing.kept.tolist() == [[True, True], [False, True]]
    assert_close(routing.weight, torch.tensor([[5 / 9, 4 / 9], [0.0, 3 / 7]], dtype=torch.float64))


@pytest.mark.parametrize("policy", ["probability", "position"])
def test_capacity_is_exact_for_decimal_factors(policy: str) -> None:
    # 200 tokens, K = 2: 400 assignments. FFN: 1.1 * .75 * 400 / (.75 * 8 + 4) = 33; others: 1.1 * 400 / 10 = 44.
    # In binary floating point these come out above 33 and 44; rounded up they would be 34 and 45.
    moe = obedient_moe(
        MoEConfig(hidden_size=4, intermediate_size=4, num_ffn_experts=8, capacity_factor=1.1, drop_policy=policy)
    )
    x, previous = randn(200, 4, seed=0), torch.zeros(200, 12, dtype=torch.float64)
    previous[:, 3], previous[:, 9] = 5.0, 4.0  # every token chooses FFN 3 and constant expert 9
    routing = moe(x, previous)[1]
    assert routing.kept.sum(dim=0).tolist() == [33, 44]
    # 100 of the tokens are padding: T of Eq. 8 counts the 200 other assignments. 16.5 rounds up to 17; 22 is exact.
    mask = torch.arange(200) % 2 == 0
    routing = moe(x, previous, mask=mask)[1]
    assert routing.kept.sum(dim=0).tolist() == [17, 22]
    assert not routing.kept[~mask].any()


def test_padding_keeps_its_choice_and_gets_no_output() -> None:
    moe = one_of_each()
    mask = torch.tensor([True, False, True])
    previous = log_probs([0.5, 0.25, 0.15, 0.1], [0.05, 0.1, 0.6, 0.25], [0.1, 0.3, 0.05, 0.55])
    x = randn(3, 2, seed=0)
    output, routing = moe(x, previous, mask=mask)
    assert routing.expert[1].tolist() == [COPY, ZERO]
    assert routing.kept.tolist() == [[True, True], [False, False], [True, True]]
    assert routing.weight[1].tolist() == [0.0, 0.0]
    assert output[1].tolist() == [0.0, 0.0]
    assert torch.equal(output[mask], moe(x[mask], previous[mask])[0])


def test_selection_bias_picks_but_does_not_weigh() -> None:
    previous = log_probs([0.5, 0.25, 0.15, 0.1])
    bias = torch.tensor([0.0, -9.0, 0.0, 9.0], dtype=torch.float64)
    plain, biased = (one_of_each()(randn(1, 2, seed=0), previous, selection_bias=b)[1] for b in (None, bias))
    assert set(biased.expert[0].tolist()) == {ZERO, FFN}
    weight = dict(zip(biased.expert[0].tolist(), biased.weight[0].tolist(), strict=True))
    assert weight == pytest.approx({FFN: 0.5, ZERO: 0.1})
    assert torch.equal(biased.logits, plain.logits)
    assert torch.equal(biased.probs, plain.probs)


def test_minus_infinity_disables_an_expert_with_finite_gradients() -> None:
    config = MoEConfig(hidden_size=4, intermediate_size=4, num_ffn_experts=4, capacity_factor=None)
    moe, bias = random_moe(config), torch.zeros(8, dtype=torch.float64)
    bias[[1, 6]] = -torch.inf
    x = randn(64, 4, seed=0).requires_grad_()
    previous = randn(64, 8, seed=1)
    assert {1, 6} < set(moe(x, previous)[1].expert.flatten().tolist())
    output, routing = moe(x, previous, selection_bias=bias)
    assert set(routing.expert.flatten().tolist()) == {0, 2, 3, 4, 5, 7}
    output.sum().backward()
    assert all(t.grad is None or t.grad.isfinite().all() for t in (x, *moe.parameters()))


def test_edit_comes_after_selection_and_before_capacity() -> None:
    moe = obedient_moe(FULL)  # each expert keeps 1 of the 3 assignments
    seen: list[Routing] = []

    def edit(routing: Routing) -> Routing:
        seen.append(routing)
        return routing._replace(
            logits=torch.zeros_like(routing.logits),
            expert=torch.ones_like(routing.expert),
            weight=torch.full_like(routing.weight, 0.25),
        )

    x, previous = randn(3, 4, seed=0), log_probs([0.6, 0.4], [0.9, 0.1], [0.7, 0.3])
    output, routing = moe(x, previous, edit=edit)
    assert len(seen) == 1
    assert seen[0].expert.tolist() == [[0], [0], [0]]
    assert seen[0].kept.all(), "nothing is dropped before the edit"
    assert routing.expert.tolist() == [[1], [1], [1]]
    assert routing.kept.sum() == 1, "capacity holds for the edited choice"
    assert_close(routing.weight, 0.25 * routing.kept.double())
    assert_close(output, 0.25 * routing.kept.double() * x)  # expert 1 is the copy expert
    assert torch.equal(routing.logits, previous), "what the next layer gets is never edited"


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_ties_go_to_the_lower_expert_index(top_k: int) -> None:
    config = MoEConfig(hidden_size=4, intermediate_size=4, num_ffn_experts=30, top_k=top_k, capacity_factor=None)
    moe, x = obedient_moe(config), randn(50, 4, seed=0)
    tied = torch.zeros(50, 34, dtype=torch.float64)
    assert moe(x, tied)[1].expert.tolist() == [list(range(top_k))] * 50
    tied[:, [20, 7, 33]] = 2.0
    assert moe(x, tied)[1].expert.tolist() == [[7, 20, 33][:top_k]] * 50


def test_the_tokens_meet_router_and_mixing_weights_in_one_product() -> None:
    config = MoEConfig(hidden_size=32, intermediate_size=16, num_ffn_experts=4)
    layer = MoE(config, backend="reference").eval()
    shapes: list[tuple[int, ...]] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                shapes.append(tuple(args[-1].shape))
            return func(*args, **(kwargs or {}))

    only_zero = torch.tensor([-torch.inf] * 4 + [0.0] * 4)  # the FFN experts have products of their own
    with torch.no_grad(), Spy():
        layer(torch.randn(64, 32), torch.randn(64, 8), selection_bias=only_zero)
    rows = config.layout().num_experts + 2 * config.num_constant_experts
    over_tokens = [shape for shape in shapes if shape[0] == 32 and shape[1] > 0]
    assert over_tokens.count((32, rows)) == 1
    assert [shape for shape in over_tokens if shape != (32, rows) and shape[1] < 16] == []
