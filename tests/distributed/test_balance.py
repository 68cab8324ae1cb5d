"""Over which tokens Eq. 7 takes f."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from moepp.model import MoEPPConfig, MoEPPForCausalLM
from moepp.model.balance import GlobalCounts
from moepp.train.metrics import rank_imbalance

from ..tolerances import assert_close
from .processes import run_processes

BETA = 5.0


def model_of(scope: str) -> MoEPPForCausalLM:
    torch.manual_seed(0)
    config = MoEPPConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_ffn_experts=3,
        capacity_factor=None,
        router_aux_loss_coef=BETA,
        initializer_range=0.3,
        balance_scope=scope,
    )
    return MoEPPForCausalLM(config).train()


def samples() -> Tensor:
    return torch.randint(0, 31, (4, 12), generator=torch.Generator().manual_seed(1))


def gradient(model: MoEPPForCausalLM) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _rank_gradient(scope: str) -> tuple[float, dict[str, Tensor]]:
    """Of the mean over two processes, each with half of the samples."""
    model, mine = model_of(scope), samples().chunk(2)[dist.get_rank()]
    out = model(input_ids=mine, labels=mine)
    out.loss.backward()
    found = gradient(model)
    for grad in found.values():
        dist.all_reduce(grad)
        grad /= 2
    loss = out.balance_loss.detach()
    dist.all_reduce(loss)
    return loss.item() / 2, found


def test_global_scope_over_processes_is_one_process_with_all_tokens() -> None:
    model = model_of("micro")
    out = model(input_ids=samples(), labels=samples())
    out.loss.backward()
    loss, found = run_processes(2, _rank_gradient, "global")[0]
    assert loss == pytest.approx(out.balance_loss.item(), rel=1e-5)
    for name, expected in gradient(model).items():
        assert_close(found[name], expected, name=name)
    micro, _ = run_processes(2, _rank_gradient, "micro")[0]
    assert micro != pytest.approx(loss, rel=1e-4), "the scopes don't differ on these samples"


def test_global_scope_remembers_the_micro_batches_of_a_step() -> None:
    """f of the second micro-batch is the share over both; P is its own."""
    model, counts = model_of("global"), GlobalCounts()
    first, second = samples().chunk(2)
    stats = model(input_ids=first, labels=first, global_counts=counts).routing_stats
    out = model(input_ids=second, labels=second, global_counts=counts)
    for layer, (before, now) in enumerate(zip(stats, out.routing_stats, strict=True)):
        f = (before.assigned + now.assigned) / (before.tokens + now.tokens)
        p = now.prob_sum / now.tokens
        eta = torch.tensor([1.0] * 3 + [0.75] * 4)
        assert out.layer_balance_loss[layer].item() == pytest.approx((eta * f * p).sum().item(), rel=1e-5)
    alone = model(input_ids=second, labels=second).balance_loss
    assert out.balance_loss.item() != pytest.approx(alone.item(), rel=1e-5)
    counts.reset()
    again = model(input_ids=second, labels=second, global_counts=counts).balance_loss
    assert again.item() == pytest.approx(alone.item(), rel=1e-6)


def test_an_evaluated_batch_is_judged_by_itself() -> None:
    model, counts = model_of("global").eval(), GlobalCounts()
    first, second = samples().chunk(2)
    model(input_ids=first, labels=first, global_counts=counts)
    with_counts = model(input_ids=second, labels=second, global_counts=counts).balance_loss
    assert with_counts.item() == model_of("micro").eval()(input_ids=second, labels=second).balance_loss.item()


def test_rank_imbalance_counts_rows_where_they_are_computed() -> None:
    """Two processes, one layer, two FFN experts and two others, whose assignments are no FFN rows."""
    kept = torch.tensor([[[6, 2, 9, 9]], [[4, 0, 0, 9]]])
    assert rank_imbalance(kept, 2, 1) == pytest.approx(8 / 6)  # each its own tokens' rows: 8 and 4
    assert rank_imbalance(kept, 2, 2) == pytest.approx(10 / 6)  # each its own expert's rows: 10 and 2


def test_rank_imbalance_waits_in_every_layer() -> None:
    """Rows 4, 0 in one layer and 0, 4 in the other: even in sum, and yet each layer waits for one process."""
    kept = torch.tensor([[[4], [0]], [[0], [4]]])
    assert rank_imbalance(kept, 1, 1) == pytest.approx(2.0)


def test_rank_imbalance_of_no_rows_at_all() -> None:
    assert rank_imbalance(torch.zeros(2, 3, 4, dtype=torch.int64), 2, 2) == 0.0
