"""What is Triton's own: several tiles each way, the dense term in the combine, its tables, its reasons, its import."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moepp import expert_ffn
from moepp.errors import BackendUnavailable
from moepp.ops import DenseTerm, routing, triton_experts
from moepp.ops.triton_dispatch import dispatch

from ..factory import randn
from ..tolerances import assert_close

T, D, F, N, K, C = 120, 36, 37, 3, 3, 3  # no multiple of a block, and more than one block of each


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


def test_operators_keep_the_rules_that_torch_compile_relies_on() -> None:
    """opcheck: nothing is written to an input, and shapes without tensors are the shapes with.

    No id is outside: what nobody writes, past the last row, differs from run to run.
    """
    found = leaves(torch.float32)
    weight, scale, shift, constant = (found[name] for name in ("weight", "scale", "shift", "constant"))
    experts = found["x"], weight, found["gate_up"], found["down"], scale, shift, constant
    tables = triton_experts.dispatch(ids(0, N), N)
    y, halves = triton_experts._forward(*experts, *tables, True)
    logits = randn(T, 8, seed=1, dtype=torch.float32).requires_grad_()
    rule = ("renormalize", 6, 8, 1.0)
    chosen = [t.detach() for t in routing._route(logits, None, 2, *rule)]
    calls = {
        triton_experts.dispatch: (ids(0, N), N),
        triton_experts._forward: (*experts, *tables, True),
        triton_experts._backward: (
            y.detach(),
            *(t.detach() for t in (*experts, *tables, halves)),
            [True, False] * 3 + [True],
        ),
        routing._route: (logits, None, 2, *rule),
        routing._route_backward: (chosen[0], chosen[2], logits.detach(), *chosen, *rule),
    }
    for operator, arguments in calls.items():
        # All but tracing, which is slow and what the tests of torch.compile do.
        torch.library.opcheck(
            operator, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )


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


def test_without_triton_everything_else_runs() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from moepp import expert_ffn; from moepp.errors import BackendUnavailable; one = torch.ones\n"
        "args = one(1, 8), torch.zeros(1, 1).long(), one(1, 1), one(1, 8, 8), one(1, 8, 4)\n"
        "print(expert_ffn(*args, backend='grouped').shape)\n"
        "try: expert_ffn(*args, backend='triton')\n"
        "except BackendUnavailable as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    shape, reason = done.stdout.splitlines()
    assert shape == "torch.Size([1, 8])"
    assert reason == "backend='triton' cannot run here: triton is not installed; use 'auto' or 'reference'"


def test_every_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    """The interpreter runs what no GPU could: this is the check that one can. The fastest float32 tile is small."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    program = [sys.executable, "-m", "tests.ops.h100"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    kernels = {node.name for node in ast.walk(_kernel_sources()) if isinstance(node, ast.FunctionDef)}
    assert {name for name, *_ in lines} == {name for name in kernels if name.endswith("_kernel")}
    assert {(dtype, blocks) for _, dtype, blocks, _ in lines if blocks != "-"} == {
        ("torch.bfloat16", "128x128x64"),
        ("torch.float32", "64x64x32"),
    }
    assert max(int(kibibytes) for *_, kibibytes in lines) <= 227


def _kernel_sources() -> ast.Module:
    files = Path(triton_experts.__file__).parent.glob("triton_*.py")
    return ast.Module([node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body], [])
