"""Balance loss (Eq. 7), z-loss and the additive counts, on routings written by hand."""

import torch
from torch import Tensor

from moepp import MoEConfig, Routing, RoutingStats, balance_loss, z_loss

from ..factory import randn, random_moe
from ..tolerances import assert_close

TWO_AND_TWO = MoEConfig(
    hidden_size=4, intermediate_size=4, num_ffn_experts=2, num_constant_experts=1, num_zero_experts=0, top_k=1, tau=0.75
)


def routing_of(probs: list[list[float]], expert: list[list[int]], kept: list[list[bool]] | None = None) -> Routing:
    p, e = torch.tensor(probs, dtype=torch.float64), torch.tensor(expert)
    k = torch.ones_like(e, dtype=torch.bool) if kept is None else torch.tensor(kept)
    return Routing(logits=p.log(), probs=p, expert=e, weight=p.gather(1, e) * k, kept=k)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def concatenated(a: Routing, b: Routing) -> Routing:
    return Routing(*(torch.cat(pair) for pair in zip(a, b, strict=True)))


def test_balance_loss_of_uniform_routing_by_hand() -> None:
    # Two FFN and two zero-computation experts, each chosen by one of four tokens: f = P = 1/4 everywhere, so
    # (1 + 1 + tau + tau) / 16 = 3.5 / 16. No factor N, no 1/K.
    routing = routing_of([[0.25] * 4] * 4, [[0], [1], [2], [3]])
    assert_close(balance_loss(routing, TWO_AND_TWO), scalar(3.5 / 16))


def test_balance_loss_counts_all_k_choices() -> None:
    # With K = 2 the frequencies sum to 2: twice the loss above.
    routing = routing_of([[0.25] * 4] * 4, [[0, 1], [1, 2], [2, 3], [3, 0]])
    assert_close(balance_loss(routing, TWO_AND_TWO), scalar(7 / 16))


def test_balance_loss_weighs_zero_computation_experts_by_tau() -> None:
    probs = [[0.0, 0.0, 0.0, 1.0]] * 2
    assert_close(balance_loss(routing_of(probs, [[3], [3]]), TWO_AND_TWO), scalar(0.75))
    probs = [[0.0, 1.0, 0.0, 0.0]] * 2
    assert_close(balance_loss(routing_of(probs, [[1], [1]]), TWO_AND_TWO), scalar(1.0))


def test_balance_loss_counts_choices_that_capacity_dropped() -> None:
    """f is what the router selected: dropping must not hide an overload from the loss."""
    expert, kept = [[0], [0], [0], [1]], [[True], [False], [False], [True]]
    probs = [[0.7, 0.1, 0.1, 0.1]] * 4
    assert_close(
        balance_loss(routing_of(probs, expert, kept), TWO_AND_TWO), balance_loss(routing_of(probs, expert), TWO_AND_TWO)
    )
    # f = (3/4, 1/4), P = (.7, .1): .525 + .025.
    assert_close(balance_loss(routing_of(probs, expert, kept), TWO_AND_TWO), scalar(0.55))


def test_oppositely_collapsed_layers_are_both_penalised() -> None:
    # Layer a sends all to expert 0, layer b all to expert 1: f P = 1 in each, 2 together. Pooled before multiplying
    # they would look perfectly balanced: f = P = 1/2, and a loss of 1/2.
    config = TWO_AND_TWO.vanilla()
    a = routing_of([[1.0, 0.0]] * 4, [[0]] * 4)
    b = routing_of([[0.0, 1.0]] * 4, [[1]] * 4)
    total = balance_loss(a, config) + balance_loss(b, config)
    assert_close(total, scalar(2.0))
    assert_close(balance_loss(concatenated(a, b), config), scalar(0.5))


def test_balance_loss_excludes_padding() -> None:
    real = routing_of([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], [[0], [3]])
    padding = routing_of([[0.97, 0.01, 0.01, 0.01]] * 3, [[0]] * 3, [[False]] * 3)
    mask = torch.tensor([True, True, False, False, False])
    # f = (1/2, 0, 0, 1/2), P = (.25, .25, .25, .25): .125 + .75 * .125.
    loss = balance_loss(concatenated(real, padding), TWO_AND_TWO, mask=mask)
    assert_close(loss, scalar(0.125 * 1.75))
    assert_close(loss, balance_loss(real, TWO_AND_TWO))


def test_balance_loss_reaches_the_router_through_probabilities_only() -> None:
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 2, dtype=torch.float64, requires_grad=True)
    routing = routing_of([[0.4, 0.3, 0.2, 0.1]] * 2, [[0], [3]])._replace(probs=probs)
    balance_loss(routing, TWO_AND_TWO).backward()
    # d/dP_t,i = eta_i f_i / T with f = (1/2, 0, 0, 1/2) and T = 2.
    assert probs.grad is not None
    assert_close(probs.grad, torch.tensor([[0.25, 0.0, 0.0, 0.1875]] * 2, dtype=torch.float64))


def test_z_loss_is_the_mean_square_of_logsumexp_over_real_tokens() -> None:
    routing = routing_of([[0.25] * 4] * 3, [[0]] * 3)
    # logits = log(a) + log(1/4) for four experts: logsumexp = log(a).
    shift = torch.tensor([[2.0], [3.0], [50.0]], dtype=torch.float64)
    routing = routing._replace(logits=routing.logits + shift)
    assert_close(z_loss(routing), scalar((4 + 9 + 2500) / 3))
    assert_close(z_loss(routing, mask=torch.tensor([True, True, False])), scalar(6.5))


def test_stats_count_assigned_and_kept_apart() -> None:
    probs = [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.0, 0.0]]
    stats = RoutingStats.of(
        routing_of(probs, [[0, 1], [3, 2], [0, 1]], [[True, True], [True, True], [False, True]]),
    )
    assert int(stats.tokens) == 3
    assert stats.assigned.tolist() == [2, 2, 1, 1]
    assert stats.kept.tolist() == [1, 2, 1, 1]
    assert_close(stats.prob_sum.double(), torch.tensor([1.0, 1.0, 0.5, 0.5], dtype=torch.float64), like=torch.float32)


def test_stats_exclude_padding() -> None:
    probs = [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.0, 0.0]]
    routing = routing_of(probs, [[0], [3], [1]], [[True], [False], [True]])
    stats = RoutingStats.of(routing, mask=torch.tensor([True, False, True]))
    assert int(stats.tokens) == 2
    assert stats.assigned.tolist() == [1, 1, 0, 0]
    assert stats.kept.tolist() == [1, 1, 0, 0]
    assert_close(stats.prob_sum.double(), torch.tensor([0.9, 0.8, 0.2, 0.1], dtype=torch.float64), like=torch.float32)


def test_stats_of_a_layer_tell_what_capacity_dropped() -> None:
    config = MoEConfig(hidden_size=4, intermediate_size=4, num_ffn_experts=4)
    _, routing = random_moe(config)(randn(32, 4, seed=0), randn(32, 8, seed=1))
    stats = RoutingStats.of(routing)
    assert stats.assigned.sum() == 64
    assert stats.kept.sum() == routing.kept.sum() < 64
    assert stats.assigned.shape == stats.kept.shape == stats.prob_sum.shape == (8,)


def test_balance_loss_is_as_precise_as_its_probabilities() -> None:
    """A frequency of 2/3 rounded to float32 would be off by 2e-8 in a float64 layer."""
    routing = routing_of([[0.25, 0.75, 0.0, 0.0]] * 3, [[0], [0], [1]])
    assert_close(balance_loss(routing, TWO_AND_TWO), scalar(0.25 * 2 / 3 + 0.75 / 3))


def test_nothing_but_padding_gives_zeros() -> None:
    """A rank of a distributed run may hold only padding; a NaN there would reach every other rank."""
    config = MoEConfig(hidden_size=4, intermediate_size=4, num_ffn_experts=4)
    mask = torch.zeros(6, dtype=torch.bool)
    output, routing = random_moe(config)(randn(6, 4, seed=0), randn(6, 8, seed=1), mask=mask)
    assert not output.any()
    assert not routing.kept.any()
    assert balance_loss(routing, config, mask=mask) == z_loss(routing, mask=mask) == 0
    stats = RoutingStats.of(routing, mask=mask)
    assert int(stats.tokens) == 0
    assert not stats.assigned.any()
    assert not stats.prob_sum.any()
