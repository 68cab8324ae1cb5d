"""The packed CPU backend: parity without gradients, packing once and anew, and what it refuses."""

import gc
import re

import pytest
import torch
from torch import Tensor

import moepp.ops
from moepp import MoEConfig, expert_ffn
from moepp.errors import BackendUnavailable
from moepp.layers import FFNExperts
from moepp.ops import DenseTerm, add_dense, onednn, packed_weights

from ..factory import randn
from ..tolerances import assert_close
from .test_expert_ffn import Case, D, F, K, N, case, doubled, loop


def plain(c: Case) -> Case:
    """The same without gradients."""
    return Case(*(t.detach() for t in c))


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes in which weights were packed, one entry each time."""
    calls = []
    real = onednn.pack

    def counted(gate_up: Tensor, down: Tensor, dtype: torch.dtype) -> onednn.Packed:
        calls.append(dtype)
        return real(gate_up, down, dtype)

    monkeypatch.setattr(onednn, "pack", counted)
    return calls


@pytest.mark.usefixtures("no_gradients")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 5, 8, 9, 63, 1100])
def test_equals_the_loop(tokens: int, dtype: torch.dtype) -> None:
    """8 and 9 are on either side of decoding, 1100 tokens make more than one chunk an expert."""
    c = plain(case(tokens, dtype, low=-1, high=N + 1))
    assert_close(expert_ffn(*c, backend="onednn"), loop(doubled(c)).detach())


@pytest.mark.usefixtures("no_gradients")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 8, 63])
def test_adds_the_dense_term(tokens: int, dtype: torch.dtype) -> None:
    c = plain(case(tokens, dtype))
    dense = DenseTerm(randn(tokens, seed=7).float(), randn(tokens, 3, seed=8).float(), randn(3, D, seed=9).to(dtype))
    expected = loop(doubled(c)).detach() + add_dense(None, c.x.double(), DenseTerm(*(t.double() for t in dense)))
    assert_close(expert_ffn(*c, dense=dense, backend="onednn"), expected, like=dtype)
    only_copies = DenseTerm(dense.scale, None, None)
    expected = loop(doubled(c)).detach() + c.x.double() * dense.scale.double().unsqueeze(-1)
    assert_close(expert_ffn(*c, dense=only_copies, backend="onednn"), expected, like=dtype)


@pytest.mark.usefixtures("no_gradients")
@pytest.mark.parametrize("tokens", [1, 8, 63])
def test_odd_cases(tokens: int) -> None:
    c = plain(case(tokens))
    outside = c._replace(expert=torch.tensor([[-1, N + 5]] * tokens))
    assert not expert_ffn(*outside, backend="onednn").any()
    twice = c._replace(expert=c.expert[:, :1].repeat(1, K))
    assert_close(expert_ffn(*twice, backend="onednn"), loop(doubled(twice)).detach())
    one = c._replace(expert=torch.full_like(c.expert, N - 1))
    assert_close(expert_ffn(*one, backend="onednn"), loop(doubled(one)).detach())
    strided = c._replace(x=c.x.t().contiguous().t(), weight=c.weight.t().contiguous().t())
    before = [t.clone() for t in strided]
    assert_close(expert_ffn(*strided, backend="onednn"), loop(doubled(c)).detach())
    assert all(torch.equal(a, b) for a, b in zip(before, strided, strict=True))


@pytest.mark.usefixtures("no_gradients", "poisoned_memory")
@pytest.mark.parametrize("tokens", [8, 63])
def test_uninitialised_memory_and_foreign_rows_are_never_read(tokens: int) -> None:
    c = plain(case(tokens, low=-1, high=N + 2))
    c.x[3], c.expert[3] = torch.nan, N
    y = expert_ffn(*c, backend="onednn")
    assert not y[3].any()
    c.x[3] = 0.0
    assert_close(y, loop(doubled(c)).detach())


@pytest.mark.usefixtures("no_gradients")
def test_auto_packs_once(packs: list[torch.dtype]) -> None:
    c = plain(case(63, torch.bfloat16))
    for _ in range(3):
        expert_ffn(*c)
    assert packs == [torch.bfloat16]


@pytest.mark.usefixtures("no_gradients")
def test_under_autocast_float32_weights_are_packed_once_in_its_dtype(packs: list[torch.dtype]) -> None:
    c = plain(case(63))
    with torch.autocast("cpu", torch.bfloat16):
        ys = [expert_ffn(*c) for _ in range(3)]
    assert packs == [torch.bfloat16]
    assert ys[0].dtype is torch.bfloat16
    assert_close(ys[0], loop(doubled(c)).detach())


def swapped(w: Tensor) -> None:
    w.data = w.data * 2


def optimised(w: Tensor) -> None:
    w.grad = torch.ones_like(w)
    torch.optim.SGD([w], lr=0.5).step()


CHANGES = {
    "in place": lambda w: w.mul_(2),
    "through .data": lambda w: w.data.mul_(2),
    "one row through .data": lambda w: w.data[0].mul_(2),
    "other .data": swapped,
    "optimiser": optimised,
}


@pytest.mark.usefixtures("no_gradients")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("which", ["gate_up", "down"])
def test_changed_weights_are_packed_anew(which: str, change: str) -> None:
    c = plain(case(63))
    before = expert_ffn(*c, backend="onednn")
    CHANGES[change](getattr(c, which))
    after = expert_ffn(*c, backend="onednn")
    assert (after - before).abs().max() > 0.01
    assert_close(after, loop(doubled(c)).detach())


def test_training_frees_the_packed_copy_and_so_does_the_end_of_the_weights() -> None:
    c = case(63)
    with torch.no_grad():
        expert_ffn(*c)
    assert c.gate_up in packed_weights._cache
    expert_ffn(*c).sum().backward()
    assert c.gate_up not in packed_weights._cache
    with torch.no_grad():
        expert_ffn(*c)
    entries = len(packed_weights._cache)
    del c
    gc.collect()
    assert len(packed_weights._cache) == entries - 1


def refusals() -> dict[str, tuple[Case, str]]:
    with torch.inference_mode():
        frozen = Case(*(t.clone() for t in plain(case(5))))
    return {
        "gradients": (case(5), r"it computes no gradients"),
        "float16": (plain(case(5, torch.float16)), r"it does not take torch\.float16"),
        "inference": (frozen, r"weights made under torch\.inference_mode do not tell when they change"),
    }


@pytest.mark.parametrize("name", ["gradients", "float16", "inference"])
def test_named_it_says_why_it_cannot_run(name: str) -> None:
    c, reason = refusals()[name]
    with pytest.raises(BackendUnavailable, match=rf"backend='onednn' cannot run here: {reason}"):
        expert_ffn(*c, backend="onednn")


@pytest.mark.parametrize("broken", ["missing", "wrong"])
def test_operators_that_fail_at_the_start_are_named_and_auto_runs_grouped(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> Tensor:
        raise AttributeError("no operator _reorder_linear_weight")

    monkeypatch.setattr(onednn, "pack", missing if broken == "missing" else lambda *_: lambda x, index: x * 0)
    onednn._does_not_work.cache_clear()
    moepp.ops._say_once.cache_clear()
    c = plain(case(63))
    reason = "has no working oneDNN products" if broken == "missing" else "give wrong results for torch.float32"
    try:
        with torch.no_grad():
            with pytest.raises(BackendUnavailable, match=reason):
                expert_ffn(*c, backend="onednn")
            assert torch.equal(expert_ffn(*c), expert_ffn(*c, backend="grouped"))
        assert re.search(rf"'auto' runs 'grouped', not 'onednn': .*{reason}", caplog.text)
    finally:
        onednn._does_not_work.cache_clear()


def test_numbers_of_rows_are_few_and_hardly_larger() -> None:
    """oneDNN generates code for each."""
    sizes = [onednn._padded(rows) for rows in range(1, 2049)]
    assert all(rows <= size <= rows * 17 / 16 for rows, size in enumerate(sizes, start=1))
    assert len(set(sizes)) == 32 + 16 * 6
    assert sizes == sorted(sizes)


CONFIG = MoEConfig(hidden_size=D, intermediate_size=F, num_ffn_experts=N)


def experts() -> FFNExperts:
    torch.manual_seed(0)
    return FFNExperts(CONFIG)


def test_packed_experts_give_the_same_and_keep_no_second_copy() -> None:
    module = experts()
    x, expert = randn(20, D, seed=1).float(), torch.arange(40).view(20, 2) % N
    weight = torch.full((20, 2), 0.5)
    saved = {name: t.clone() for name, t in module.state_dict().items()}
    with torch.no_grad():
        expected = module(x, expert, weight)
    module.pack_for_inference()
    assert all(p.is_meta for p in module.parameters())
    with torch.no_grad():
        assert torch.equal(module(x, expert, weight), expected)
    assert all(torch.equal(t, saved[name]) for name, t in module.state_dict().items())
    module.unpack()
    assert all(torch.equal(t, saved[name]) for name, t in module.named_parameters())
    assert all(p.requires_grad for p in module.parameters())


def test_packed_experts_refuse_what_they_cannot_do() -> None:
    module = experts()
    module.pack_for_inference()
    x = randn(4, D, seed=1).float().requires_grad_()
    expert, weight = torch.zeros(4, 2, dtype=torch.long), torch.ones(4, 2)
    with pytest.raises(BackendUnavailable, match=r"packed experts compute no gradients; .*unpack\(\)"):
        module(x, expert, weight)
    with pytest.raises(BackendUnavailable, match=r"packed experts cannot be moved or converted; call unpack\(\)"):
        module.to(torch.bfloat16)
    module.backend = "grouped"
    with pytest.raises(BackendUnavailable, match=r"backend='grouped' cannot run packed experts; call unpack\(\)"):
        module(x.detach(), expert, weight)


def test_loading_weights_into_packed_experts_unpacks_them() -> None:
    module, other = experts(), FFNExperts(CONFIG)
    module.pack_for_inference()
    module.load_state_dict(other.state_dict())
    assert torch.equal(module.gate_up_proj, other.gate_up_proj)
