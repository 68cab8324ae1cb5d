"""The fused routing kernel against the Router's own steps: choices, weights, gradients, ties and disabled experts."""

import dataclasses

import pytest
import torch
from torch import Tensor

from moepp import MoEConfig, Router, Routing
from moepp.layers import routing as routing_module

from ..factory import randn
from ..tolerances import assert_close

CONFIG = MoEConfig(hidden_size=9, intermediate_size=4, num_ffn_experts=4, num_zero_experts=2)
COMBINES = ["probabilities", "renormalize", "renormalize_nonzero", "softmax_topk"]
EXPERTS = CONFIG.layout().num_experts


def routed(config: MoEConfig, logits: Tensor, backend: str, bias: Tensor | None = None) -> Routing:
    """What a router makes of these logits, which stand in for its projection."""
    x = logits.new_zeros(len(logits), config.hidden_size)
    return Router(config, first=True)(x, selection_bias=bias, projected=logits, backend=backend)


def check(config: MoEConfig, logits: Tensor, bias: Tensor | None = None) -> None:
    """The choices of the plain steps in float64, close numbers, and close gradients from either output and both."""
    found = []
    for backend, leaf in (("triton", logits.clone()), ("auto", logits.cpu().double())):
        leaf.requires_grad_()
        routing = routed(config, leaf, backend, bias)
        parts = [(t * randn(*t.shape, seed=i).to(t)).sum() for i, t in enumerate((routing.probs, routing.weight))]
        gradients = [torch.autograd.grad(part, leaf, retain_graph=True)[0] for part in (*parts, sum(parts))]
        found.append((routing, gradients))
    (fused, ours), (plain, theirs) = found
    assert torch.equal(fused.expert.cpu(), plain.expert)
    assert torch.equal(fused.kept.cpu(), plain.kept)
    for name in ("probs", "weight"):
        assert_close(getattr(fused, name), getattr(plain, name), name=name)
    for name, a, b in zip(("probs", "weight", "both"), ours, theirs, strict=True):
        assert_close(a, b, name=f"gradient from {name}")


@pytest.fixture(autouse=True)
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the kernel was asked; a test that compared the plain steps with themselves would show 0."""
    calls = []

    def counted(*args: object, **kwargs: object) -> tuple[Tensor, ...]:
        calls.append(1)
        return real(*args, **kwargs)

    real = routing_module.fused_routing
    monkeypatch.setattr(routing_module, "fused_routing", counted)
    return calls


@pytest.mark.parametrize("biased", [False, True], ids=["unbiased", "biased"])
@pytest.mark.parametrize("logits_std", [None, 2.5])
@pytest.mark.parametrize("top_k", [1, 3, EXPERTS])
@pytest.mark.parametrize("combine", COMBINES)
def test_kernel_equals_the_plain_steps(
    combine: str, top_k: int, logits_std: float | None, biased: bool, fused_calls: list[int]
) -> None:
    config = dataclasses.replace(CONFIG, combine=combine, top_k=top_k, logits_std=logits_std)
    bias = randn(EXPERTS, seed=2, dtype=torch.float32) if biased else None
    check(config, 2 * randn(70, EXPERTS, seed=1, dtype=torch.float32), bias)
    assert fused_calls


@pytest.mark.gpu
@pytest.mark.parametrize("logits_std", [None, 2.5])
@pytest.mark.parametrize("combine", COMBINES)
def test_kernel_equals_the_plain_steps_on_a_gpu(combine: str, logits_std: float | None) -> None:
    config = dataclasses.replace(CONFIG, combine=combine, top_k=3, logits_std=logits_std)
    check(config, 2 * randn(1000, EXPERTS, seed=1, dtype=torch.float32).cuda())


@pytest.mark.parametrize("disabled", [1, EXPERTS - 1, EXPERTS])
@pytest.mark.parametrize("combine", COMBINES)
def test_disabled_experts_are_not_kept(combine: str, disabled: int) -> None:
    bias = torch.zeros(EXPERTS)
    bias[:disabled] = -torch.inf
    config = dataclasses.replace(CONFIG, combine=combine, top_k=2)
    check(config, randn(20, EXPERTS, seed=1, dtype=torch.float32), bias)


@pytest.mark.parametrize("logits_std", [None, 1.0])
def test_ties_go_to_the_lower_index_and_equal_logits_have_a_gradient(logits_std: float | None) -> None:
    config = dataclasses.replace(CONFIG, logits_std=logits_std, top_k=3)
    check(config, torch.tensor([[1.0] * EXPERTS, [0.0] * EXPERTS, [0.0, 1.0] * (EXPERTS // 2) + [1.0] * (EXPERTS % 2)]))


def test_rows_that_are_not_contiguous_are_read_in_order() -> None:
    logits = randn(20, EXPERTS + 4, seed=1, dtype=torch.float32)[:, 2:-2]
    assert not logits.is_contiguous()
    fused, plain = routed(CONFIG, logits, "triton"), routed(CONFIG, logits, "auto")
    assert torch.equal(fused.expert, plain.expert)
    assert_close(fused.weight, plain.weight)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, in the interpreter
def test_nan_logits_choose_experts_that_exist() -> None:
    logits = torch.full((3, EXPERTS), torch.nan)
    fused, plain = routed(CONFIG, logits, "triton"), routed(CONFIG, logits, "auto")
    assert torch.equal(fused.expert, plain.expert)
    assert torch.equal(fused.kept, plain.kept)
    assert torch.equal(fused.weight, plain.weight)


def test_no_tokens_are_routed_to_nobody() -> None:
    logits = torch.zeros(0, EXPERTS, requires_grad=True)
    fused, plain = routed(CONFIG, logits, "triton"), routed(CONFIG, logits, "auto")
    assert [t.shape for t in fused] == [t.shape for t in plain]
    assert torch.autograd.grad(fused.weight.sum(), logits)[0].shape == logits.shape


def test_only_the_triton_backend_fuses_and_only_in_float32(fused_calls: list[int]) -> None:
    routed(CONFIG, randn(5, EXPERTS, seed=1), "triton")
    routed(CONFIG, randn(5, EXPERTS, seed=1, dtype=torch.float32), "auto")
    assert not fused_calls
    routed(CONFIG, randn(5, EXPERTS, seed=1, dtype=torch.float32), "triton")
    assert fused_calls
