"""What is Triton's own: several tiles each way, the dense term in the combine, its tables, its reasons, its import."""

import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from moepp import expert_ffn
from moepp.errors import BackendUnavailable
from moepp.ops import DenseTerm, triton_experts
from moepp.ops.triton_dispatch import dispatch

from ..factory import randn
from ..tolerances import assert_close
from .test_expert_ffn import poisoned_memory

__all__ = ["poisoned_memory"]  # a fixture

T, D, F, N, K, C = 60, 20, 33, 3, 3, 3  # no multiple of a block, and more than one block of each


def leaves(dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """The differentiable arguments: tokens, weights, matrices, and the dense term in float32."""

    def leaf(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = dtype) -> Tensor:
        return (randn(*shape, seed=seed) * scale).to(device, dtype).requires_grad_()

    return {
        "x": leaf(T, D, seed=1),
        "weight": leaf(T, K, seed=2, dtype=torch.float32),
        "gate_up": leaf(N, 2 * F, D, seed=3, scale=D**-0.5),
        "down": leaf(N, D, F, seed=4, scale=F**-0.5),
        "scale": leaf(T, seed=5, dtype=torch.float32),
        "shift": leaf(T, C, seed=6, dtype=torch.float32),
        "constant": leaf(C, D, seed=7),
    }


def ids(low: int = -1, high: int = N + 1) -> Tensor:
    return torch.randint(low, high, (T, K), generator=torch.Generator().manual_seed(8))


def run(backend: str, found: dict[str, Tensor], expert: Tensor, constants: bool = True) -> Tensor:
    x, weight, gate_up, down, scale, shift, constant = found.values()
    dense = DenseTerm(scale, shift, constant) if constants else DenseTerm(scale, None, None)
    return expert_ffn(x, expert.to(x.device), weight, gate_up, down, dense=dense, backend=backend)


def check(
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    expert: Tensor | None = None,
    constants: bool = True,
    summed: bool = False,
) -> None:
    """Output and every gradient against the reference in float64."""
    expert = ids() if expert is None else expert
    ours = leaves(dtype, device)
    theirs = {name: leaf.detach().cpu().double().requires_grad_() for name, leaf in ours.items()}
    y, expected = run("triton", ours, expert, constants), run("reference", theirs, expert, constants)
    assert y.dtype == dtype
    assert_close(y, expected, name="output")
    cotangent = torch.ones(T, D) if summed else randn(T, D, seed=9, dtype=dtype).float()
    (y.sum() if summed else (y * cotangent.to(y)).sum()).backward()
    (expected * cotangent.double()).sum().backward()
    for name, leaf in ours.items():
        if theirs[name].grad is None:
            assert not constants
            assert name in ("shift", "constant")
            assert leaf.grad is None
        else:
            assert_close(leaf.grad, theirs[name].grad, like=dtype, name=f"gradient of {name}")


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_several_tiles_each_way_equal_the_reference(dtype: torch.dtype) -> None:
    check(dtype)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_several_tiles_each_way_equal_the_reference_on_a_gpu(dtype: torch.dtype) -> None:
    check(dtype, "cuda")


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("low", "high"), [(N, N + 2), (2, 3)], ids=["all outside", "one expert"])
def test_dense_term_equals_the_reference_whatever_the_experts_get(low: int, high: int) -> None:
    check(torch.float32, expert=ids(low, high))


def test_layer_without_constants_equals_the_reference() -> None:
    check(torch.float32, constants=False)


def test_gradient_of_a_sum_equals_the_references() -> None:
    """It is an expanded scalar, with strides of 0."""
    check(torch.float32, summed=True)


@pytest.mark.parametrize(
    "frozen", [("gate_up", "down"), ("x",), ("x", "weight", "gate_up", "down"), ("scale", "shift")]
)
def test_gradients_that_nobody_needs_are_left_out_and_the_others_stay(frozen: tuple[str, ...]) -> None:
    found, expected = leaves(torch.float32), leaves(torch.float32)
    for name in frozen:
        found[name].requires_grad_(False)
    run("triton", found, ids()).sum().backward()
    run("reference", expected, ids()).sum().backward()
    for name, leaf in found.items():
        if name in frozen:
            assert leaf.grad is None
        else:
            assert_close(leaf.grad, expected[name].grad, name=f"gradient of {name}")


@pytest.mark.gpu
def test_every_run_gives_the_same_bits() -> None:
    found = leaves(torch.bfloat16, "cuda")

    def once() -> list[Tensor]:
        y = run("triton", found, ids())
        return [y, *torch.autograd.grad(y.sum(), list(found.values()))]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


@pytest.mark.parametrize(("tokens", "experts"), [(1, 1), (63, 4), (700, 3), (40, 200)])
def test_dispatch_sorts_by_expert_and_then_by_token(tokens: int, experts: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    expert = torch.randint(-2, experts + 2, (tokens, K), generator=generator)
    order, position, offsets = dispatch(expert, experts)
    flat = expert.flatten()
    inside = (flat >= 0) & (flat < experts)
    expected = torch.where(inside, flat, experts).sort(stable=True).indices[: inside.sum()]
    assert torch.equal(order[: inside.sum()].long(), expected)
    assert torch.equal(position[expected].long(), torch.arange(len(expected)))
    assert (position[~inside] == -1).all()
    assert torch.equal(offsets.diff().long(), torch.bincount(flat[inside], minlength=experts))
    assert offsets[0] == 0


def test_saved_for_backward_are_gate_and_up_and_no_other_large_tensor() -> None:
    """A product of P · F numbers would stand out; 2 P · F are needed."""
    found, sizes = leaves(torch.float32), []
    owned = {leaf.data_ptr() for leaf in found.values()}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in owned:
            sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run("triton", found, ids())
    assert sorted(sizes)[-1] == T * K * 2 * F
    assert sum(sizes) - T * K * 2 * F == 2 * T * K + N + 1


@pytest.mark.parametrize(
    ("name", "installed", "interpreted", "dtype", "reason"),
    [
        ("not installed", False, True, torch.float32, "triton is not installed"),
        ("no GPU", True, False, torch.float32, "needs a CUDA GPU.*'cpu'"),
        ("dtype", True, True, torch.float64, "float64"),
    ],
)
def test_it_says_why_it_cannot_run(
    name: str, installed: bool, interpreted: bool, dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_experts, "_INSTALLED", installed)
    monkeypatch.setattr(triton_experts, "_INTERPRETED", interpreted)
    x, gate_up, down = (randn(*shape, seed=1, dtype=dtype) for shape in ((2, 8), (1, 8, 8), (1, 8, 4)))
    with pytest.raises(BackendUnavailable, match=f"backend='triton' cannot run here: .*{reason}"):
        expert_ffn(x, torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1), gate_up, down, backend="triton")


def test_weights_of_another_dtype_are_refused() -> None:
    found = leaves(torch.float32)
    found["down"] = found["down"].half()
    with pytest.raises(BackendUnavailable, match=r"differ in dtype: torch.float32, torch.float32, torch.float16"):
        run("triton", found, ids())


def test_triton_is_imported_when_it_first_runs_and_not_before() -> None:
    program = (
        "import sys, torch; from moepp import expert_ffn; one = torch.ones\n"
        "args = one(1, 8), torch.zeros(1, 1).long(), one(1, 1), one(1, 8, 8), one(1, 8, 4)\n"
        "loaded = lambda: 'moepp.ops.triton_gemm' in sys.modules\n"
        "expert_ffn(*args); print(loaded()); expert_ffn(*args, backend='triton'); print(loaded())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
    assert not re.search("triton", done.stderr)
