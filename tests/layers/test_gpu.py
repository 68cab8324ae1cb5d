"""The layer on a CUDA GPU: no synchronisation, CUDA graphs, one compiled graph (make gpu)."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from moepp import MoE, MoEConfig, balance_loss

from ..factory import randn, random_moe
from ..tolerances import assert_close

pytestmark = pytest.mark.gpu

TOKENS = 200
CONFIG = MoEConfig(hidden_size=64, intermediate_size=96, num_ffn_experts=4, capacity_factor=1.1)
BACKENDS = ["triton", "grouped"]


class Step:
    """Forward and backward of one layer on fixed buffers, as a CUDA graph wants them."""

    def __init__(self, backend: str, layer: nn.Module | None = None) -> None:
        self.moe: MoE = random_moe(CONFIG, backend=backend, dtype=torch.bfloat16).cuda()
        self.layer = self.moe if layer is None else layer
        self.x = randn(TOKENS, 64, seed=1, dtype=torch.bfloat16).cuda().requires_grad_()
        self.previous = randn(TOKENS, 8, seed=2, dtype=torch.float32).cuda()
        self.leaves = [self.x, *self.moe.parameters()]

    def __call__(self) -> list[Tensor]:
        y, routing = self.layer(self.x, self.previous)
        loss = y.float().square().sum() + balance_loss(routing, CONFIG)
        return [y.detach(), *torch.autograd.grad(loss, self.leaves)]


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    """Any wait for the device is an error."""
    torch.cuda.synchronize()
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("no_synchronisation")
@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_forward_and_backward_do_not_synchronise(backend: str) -> None:
    step = Step(backend)
    step()  # kernels are built and tuned in the first call, which does wait
    torch.cuda.set_sync_debug_mode("error")
    step()


@pytest.mark.parametrize("backend", BACKENDS)
def test_cuda_graph_replays_what_eager_computes(backend: str) -> None:
    step = Step(backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():  # other tokens, routed otherwise, through the same graph
        step.x.copy_(randn(TOKENS, 64, seed=3, dtype=torch.bfloat16))
        step.previous.copy_(randn(TOKENS, 8, seed=4, dtype=torch.float32))
    graph.replay()
    torch.cuda.synchronize()
    for replayed, eager in zip(captured, step(), strict=True):
        assert_close(replayed, eager)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_compiles_into_one_graph(backend: str) -> None:
    step = Step(backend)
    expected = step()
    step.layer = torch.compile(step.moe, fullgraph=True)
    for ours, eager in zip(step(), expected, strict=True):
        assert_close(ours, eager)
