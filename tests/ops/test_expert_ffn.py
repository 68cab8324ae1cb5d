"""Every backend of expert_ffn against a loop over tokens in float64: outputs, every gradient, and the odd cases."""

import re
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from moepp import expert_ffn
from moepp.errors import BackendUnavailable, ConfigError

from ..factory import randn
from ..tolerances import assert_close

D, F, N, K = 16, 24, 4, 2
BACKENDS = ["reference", "grouped", "fused", "fused_recompute", "triton"]
GPU_BACKENDS = ["reference", "grouped", "triton", "auto"]
NAMES = ("x", "weight", "gate_up", "down")


class Case(NamedTuple):
    """The arguments of expert_ffn, in its order."""

    x: Tensor
    expert: Tensor
    weight: Tensor
    gate_up: Tensor
    down: Tensor

    def leaves(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.weight, self.gate_up, self.down


def case(tokens: int, dtype: torch.dtype = torch.float32, *, device: str = "cpu", low: int = 0, high: int = N) -> Case:
    """Random arguments; ids are drawn from ``[low, high)``."""
    expert = torch.randint(low, high, (tokens, K), generator=torch.Generator().manual_seed(tokens))

    def leaf(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
        return (randn(*shape, seed=seed) * scale).to(device, dtype).requires_grad_()

    return Case(
        x=leaf(tokens, D, seed=1),
        expert=expert.to(device),
        weight=leaf(tokens, K, seed=2),
        gate_up=leaf(N, 2 * F, D, seed=3, scale=D**-0.5),
        down=leaf(N, D, F, seed=4, scale=F**-0.5),
    )


def doubled(c: Case) -> Case:
    """The same numbers as float64 leaves on the CPU."""
    x, weight, gate_up, down = (t.detach().cpu().double().requires_grad_() for t in c.leaves())
    return Case(x, c.expert.cpu(), weight, gate_up, down)


def loop(c: Case) -> Tensor:
    """sum_k weight[t,k] * down[e] (SiLU(gate[e] x[t]) * up[e] x[t]) with e = expert[t,k], skipping e outside [0, N)."""
    experts = [(g[:F], g[F:], d) for g, d in zip(c.gate_up.unbind(), c.down.unbind(), strict=True)]
    rows = []
    for t, token in enumerate(c.x.unbind()):
        row = 0.0 * token  # has a gradient, which zeros have not, where all ids are outside
        for k, e in enumerate(c.expert[t].tolist()):
            if 0 <= e < len(experts):
                gate, up, down = experts[e]
                z = gate @ token
                row = row + c.weight[t, k] * (down @ (z * torch.sigmoid(z) * (up @ token)))
        rows.append(row)
    return torch.stack(rows) if rows else torch.zeros_like(c.x)


def gradients(c: Case, y: Tensor, cotangent: Tensor | None = None, *, unused: bool = False) -> list[Tensor]:
    """The gradients of x, weight, gate_up and down; without a cotangent, of ``y.sum()``, which is an expanded one.

    ``unused`` gives zeros for what ``y`` does not depend on; a backend has to give them itself.
    """
    loss = y.sum() if cotangent is None else (y * cotangent.to(y.device, y.dtype)).sum()
    return list(torch.autograd.grad(loss, c.leaves(), materialize_grads=unused))


def check(c: Case, backend: str, *, sum_only: bool = False) -> None:
    """Output and gradients of one backend against the loop on the same numbers."""
    ours = expert_ffn(*c, backend=backend)
    assert ours.dtype == c.x.dtype
    twin = doubled(c)
    expected = loop(twin)
    assert_close(ours, expected, name="output")
    cotangent = None if sum_only else randn(*c.x.shape, seed=5)
    if cotangent is not None:
        cotangent = cotangent.to(c.x.dtype).double()  # both sides must start from the same rounded numbers
    references = gradients(twin, expected, cotangent, unused=True)
    for name, a, b in zip(NAMES, gradients(c, ours, cotangent), references, strict=True):
        assert_close(a, b, name=f"gradient of {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 63])
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_backend_equals_the_loop(backend: str, tokens: int, dtype: torch.dtype) -> None:
    if dtype is torch.float16 and backend.startswith("fused"):
        with pytest.raises(BackendUnavailable, match=rf"'{backend}' cannot run here: .*float16"):
            expert_ffn(*case(tokens, dtype), backend=backend)
        return
    check(case(tokens, dtype), backend)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 63, 1000])
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_backend_on_a_gpu_equals_the_loop(backend: str, tokens: int, dtype: torch.dtype, device: str) -> None:
    # Full float32 matmuls: with TF32 allowed, ten bits of mantissa would be compared with twenty-three.
    assert torch.get_float32_matmul_precision() == "highest"
    check(case(tokens, dtype, device=device), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thousand_tokens_equal_the_loop(backend: str) -> None:
    check(case(1000, low=-1, high=N + 1), backend)


@pytest.mark.parametrize("tokens", [1, 63])
def test_reference_in_float64_equals_the_loop(tokens: int) -> None:
    check(case(tokens, torch.float64), "reference")


@pytest.mark.parametrize("backend", BACKENDS)
def test_sum_backward_works(backend: str) -> None:
    """The gradient of a sum is an expanded scalar, which has strides of 0."""
    check(case(63), backend, sum_only=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_expert_without_tokens_gets_a_zero_gradient(backend: str) -> None:
    c = case(63)
    c = c._replace(expert=torch.where(c.expert == 2, 0, c.expert))  # an expert in the middle of the order
    check(c, backend)
    _, _, gate_up, down = gradients(c, expert_ffn(*c, backend=backend))
    assert not gate_up[2].any()
    assert not down[2].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_expert_may_take_every_token(backend: str) -> None:
    c = case(63)
    check(c._replace(expert=torch.full_like(c.expert, N - 1)), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("outside", [-1, N, N + 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_outside_contribute_nothing(backend: str, outside: int, dtype: torch.dtype) -> None:
    c = case(63, dtype)
    expert = c.expert.clone()
    expert[::3, 0] = outside
    expert[::5, 1] = outside
    check(c._replace(expert=expert), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 63])
def test_all_ids_outside_give_zeros(backend: str, tokens: int) -> None:
    c = case(tokens)
    c = c._replace(expert=torch.tensor([[-1, N + 5]] * tokens))
    y = expert_ffn(*c, backend=backend)
    assert y.shape == c.x.shape
    assert not y.any()
    assert not any(g.any() for g in gradients(c, y))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_give_no_rows(backend: str) -> None:
    """A rank of a distributed run may hold none, and must go through the same steps."""
    c = case(0)
    y = expert_ffn(*c, backend=backend)
    assert y.shape == (0, D)
    assert not any(g.any() for g in gradients(c, y))


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_finite_rows_of_tokens_that_no_expert_takes_do_not_spread(backend: str) -> None:
    c = case(63)
    expert = c.expert.clone()
    expert[7] = N
    x = c.x.detach().clone()
    x[7] = torch.nan
    y = expert_ffn(x, expert, c.weight, c.gate_up, c.down, backend=backend)
    assert y.isfinite().all()
    assert not y[7].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_may_choose_one_expert_twice(backend: str) -> None:
    c = case(63)
    check(c._replace(expert=c.expert[:, :1].repeat(1, K)), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_need_not_be_contiguous(backend: str) -> None:
    c = case(63)
    x = c.x.detach().t().contiguous().t()
    expert, weight = c.expert.t().contiguous().t(), c.weight.detach().t().contiguous().t()
    assert not any(t.is_contiguous() for t in (x, expert, weight))
    y = expert_ffn(x, expert, weight, c.gate_up, c.down, backend=backend)
    assert_close(y, loop(doubled(c)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_callers_tensors_are_not_modified(backend: str) -> None:
    c = case(63, low=-1, high=N + 2)
    before = [t.detach().clone() for t in c]
    expert_ffn(*c, backend=backend).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, c, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_without_gradients(backend: str) -> None:
    c = case(63)
    with torch.inference_mode():
        y = expert_ffn(*c, backend=backend)
    assert_close(y, loop(doubled(c)))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("low", "high"), [(0, N), (-1, N + 2), (N, N + 2)], ids=["inside", "mixed", "all outside"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_uninitialised_memory_is_never_read(backend: str, low: int, high: int) -> None:
    check(case(63, low=low, high=high), backend)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("low", "high"), [(0, N), (-1, N + 2), (N, N + 2)], ids=["inside", "mixed", "all outside"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_grouped_as_it_is_compiled_equals_the_loop(
    dtype: torch.dtype, low: int, high: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then assignments of no FFN expert stay in place, so that no shape depends on them."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    check(case(63, dtype, low=low, high=high), "grouped")


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("low", "high"), [(0, N), (-1, N + 2), (N, N + 2)], ids=["inside", "mixed", "all outside"])
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_uninitialised_memory_of_a_gpu_is_never_read(backend: str, low: int, high: int) -> None:
    check(case(63, low=low, high=high, device="cuda"), backend)


@pytest.mark.parametrize(
    ("dtype", "width", "reason"),
    [(torch.float64, 16, r"float64"), (torch.float32, 6, r"16"), (torch.bfloat16, 12, r"16")],
    ids=["float64", "24 bytes in float32", "24 bytes in bfloat16"],
)
def test_grouped_says_why_it_cannot_run_and_auto_runs_the_reference(
    dtype: torch.dtype, width: int, reason: str
) -> None:
    """A row of D elements must be a multiple of 16 bytes, and the operator knows no float64."""
    x, expert, weight = randn(5, width, seed=1, dtype=dtype), torch.zeros(5, 1, dtype=torch.long), torch.ones(5, 1)
    gate_up, down = randn(2, 16, width, seed=2, dtype=dtype), randn(2, width, 8, seed=3, dtype=dtype)
    arguments = (x, expert, weight.to(dtype), gate_up, down)
    with pytest.raises(BackendUnavailable, match=rf"(?s)grouped.*{reason}"):
        expert_ffn(*arguments, backend="grouped")
    assert torch.equal(expert_ffn(*arguments, backend="auto"), expert_ffn(*arguments, backend="reference"))
    assert torch.equal(expert_ffn(*arguments), expert_ffn(*arguments, backend="reference"))


def test_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"gruoped.*did you mean 'grouped'\?"):
        expert_ffn(*case(1), backend="gruoped")


def test_auto_says_once_that_it_runs_another_backend() -> None:
    """In a process of its own: what was said once in this one is not said again."""
    program = (
        "import torch; from moepp import expert_ffn; one = lambda *n: torch.ones(*n, dtype=torch.float64)\n"
        "for _ in range(3): expert_ffn(one(1, 8), torch.zeros(1, 1).long(), one(1, 1), one(1, 4, 8), one(1, 8, 2))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if "float64" in line]
    assert len(lines) == 1, done.stderr
    assert re.search(r"auto.*reference", lines[0])
