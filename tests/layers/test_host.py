"""The layer never waits for the device, and compiles into one graph: on any machine."""

import contextlib

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moepp import MoEConfig, balance_loss

from ..factory import randn, random_moe
from ..tolerances import assert_close

TOKENS = 24
CONFIG = MoEConfig(hidden_size=16, intermediate_size=24, num_ffn_experts=4, capacity_factor=1.1)
# torch's own description of grouped_mm to the compiler takes bfloat16 only.
BACKENDS = [("triton", torch.float32), ("grouped", torch.bfloat16)]


class NoCopies(TorchDispatchMode):
    """Fails on an operator that has tensors of two devices: a copy, for which one side waits."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = {t.device for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)}
        assert len(devices) <= 1, f"{function} copies between {devices}"
        return result


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no autocast for tensors without storage."""
    # Whoever compiles first makes torch note its functions for good, and is not to note these.
    torch.compile(torch.neg, backend="eager")(torch.ones(1))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("policy", ["probability", "position"])
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_layer_never_asks_what_a_tensor_holds(backend: str, dtype: torch.dtype, policy: str) -> None:
    """Meta tensors hold nothing: ``item``, ``nonzero`` and indexing by a mask raise, and their copies are seen."""
    config = MoEConfig(hidden_size=16, intermediate_size=24, num_ffn_experts=4, capacity_factor=1.1, drop_policy=policy)
    moe = random_moe(config, backend=backend, dtype=dtype).to("meta")
    x = torch.empty(TOKENS, 16, device="meta", dtype=dtype, requires_grad=True)
    previous, mask = torch.empty(TOKENS, 8, device="meta"), torch.empty(TOKENS, device="meta", dtype=torch.bool)
    with NoCopies():
        y, routing = moe(x, previous, mask=mask)
        (y.sum() + balance_loss(routing, config, mask=mask)).backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_asking_a_meta_tensor_and_copying_are_noticed() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(3, device="meta").nonzero().sum().item()
    with pytest.raises(AssertionError, match="copies between"), NoCopies():
        torch.ones(3).to("meta")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_layer_compiles_into_one_graph(backend: str, dtype: torch.dtype) -> None:
    moe = random_moe(CONFIG, backend=backend, dtype=dtype)
    x, previous = randn(TOKENS, 16, seed=1, dtype=dtype).requires_grad_(), randn(TOKENS, 8, seed=2, dtype=torch.float32)
    leaves = [x, *moe.parameters()]

    def run(layer) -> list[Tensor]:
        y, routing = layer(x, previous)
        return [y, routing.weight, *torch.autograd.grad(y.sum() + routing.logits.square().sum(), leaves)]

    compiled = run(torch.compile(moe, fullgraph=True, backend="aot_eager"))
    for ours, eager in zip(compiled, run(moe), strict=True):
        assert_close(ours, eager)
