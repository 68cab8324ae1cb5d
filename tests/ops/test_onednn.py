"""The packed CPU backend: parity without gradients, packing once and anew, and what it refuses."""

import copy
import gc
import pickle
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


def owned(c: Case) -> Case:
    """The same with weights that a module owns."""
    gate_up, down = (torch.nn.Parameter(t.detach(), t.requires_grad) for t in (c.gate_up, c.down))
    return c._replace(gate_up=gate_up, down=down)


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
    c = owned(plain(case(63, torch.bfloat16)))
    for _ in range(3):
        expert_ffn(*c)
    assert packs == [torch.bfloat16]


@pytest.mark.usefixtures("no_gradients")
def test_auto_packs_no_weights_that_may_be_new_at_each_call(packs: list[torch.dtype]) -> None:
    c = owned(plain(case(63)))
    adapted = c._replace(gate_up=c.gate_up + 0, down=c.down + 0)
    before = len(packed_weights._cache)
    assert torch.equal(expert_ffn(*adapted), expert_ffn(*adapted, backend="grouped"))
    assert not packs
    assert len(packed_weights._cache) == before


@pytest.mark.usefixtures("no_gradients")
def test_under_autocast_float32_weights_are_packed_once_in_its_dtype(packs: list[torch.dtype]) -> None:
    c = owned(plain(case(63)))
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
    c = owned(case(63))
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
        "float16": (plain(case(5, torch.float16)), r"it does not take torch\.float16"),
        "inference": (frozen, r"weights made under torch\.inference_mode do not tell when they change"),
    }


@pytest.mark.parametrize("name", ["float16", "inference"])
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
    c = owned(plain(case(63)))
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
    assert all(rows <= size <= rows * 33 / 32 for rows, size in enumerate(sizes, start=1))
    assert len(set(sizes)) == 64 + 32 * 5
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
    assert sum(p.untyped_storage().nbytes() for p in module.parameters()) == 2 * 4
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
    with pytest.raises(BackendUnavailable, match=r"packed experts compute no gradients; .*no_grad\(\), or unpacked"):
        module(x, expert, weight)
    with torch.no_grad(), pytest.raises(BackendUnavailable, match=r"packed as torch.float32 cannot .* torch.bfloat16"):
        module(x.bfloat16(), expert, weight)
    module.backend = "grouped"
    with pytest.raises(BackendUnavailable, match=r"backend='grouped' cannot run packed experts; call unpack\(\)"):
        module(x.detach(), expert, weight)


@pytest.mark.parametrize("frozen", ["weight", "scale", "constant", "x", "gate_up"])
def test_whatever_wants_a_gradient_is_refused(frozen: str) -> None:
    """Else the router would stop learning without a word."""
    c = plain(case(63))
    dense = DenseTerm(torch.ones(63), torch.ones(63, 1), torch.ones(1, D))
    wants = getattr(c, frozen) if hasattr(c, frozen) else getattr(dense, frozen)
    wants.requires_grad_()
    with pytest.raises(
        BackendUnavailable, match=r"backend='onednn' and packed experts compute no gradients; use torch"
    ):
        expert_ffn(*c, dense=dense, backend="onednn")


def test_packs_once_with_gradients_enabled_but_not_wanted(packs: list[torch.dtype]) -> None:
    c = plain(case(63))
    for _ in range(3):
        expert_ffn(*c, backend="onednn")
    assert len(packs) == 1


@pytest.mark.usefixtures("no_gradients")
def test_weights_may_be_views_and_many() -> None:
    c = plain(case(63))
    strided = c._replace(gate_up=c.gate_up.transpose(1, 2).contiguous().transpose(1, 2))
    assert_close(expert_ffn(*strided, backend="onednn"), loop(doubled(c)).detach())
    strided.gate_up.data.mul_(2)
    assert_close(expert_ffn(*strided, backend="onednn"), loop(doubled(strided)).detach())
    many = torch.randn(128, 16, 8), torch.randn(128, 8, 8)
    alias = packed_weights._some(many[1])
    before = alias.clone()
    many[1].data[77].mul_(2)
    assert not torch.equal(alias, before)


@pytest.mark.usefixtures("no_gradients")
def test_only_the_chosen_experts_are_read_and_nothing_is_sorted_when_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def spy(kind: type) -> None:
        real = kind.__call__
        monkeypatch.setattr(kind, "__call__", lambda self, x, index: (read.append(index), real(self, x, index))[1])

    for dtype in (torch.float32, torch.bfloat16):
        expert_ffn(*plain(case(8, dtype)), backend="onednn")  # the trial at the start reads, too
    spy(onednn.Packed)
    spy(onednn._Plain)
    monkeypatch.setattr(onednn, "dispatch", lambda *_: pytest.fail("sorted"))
    for dtype in (torch.float32, torch.bfloat16):
        c = plain(case(8, dtype, low=-1, high=N + 1))
        read.clear()
        expert_ffn(*c, backend="onednn")
        assert sorted(read) == sorted({e for e in c.expert.flatten().tolist() if 0 <= e < N})


@pytest.mark.parametrize("backend", ["reference", "grouped", "fused", "onednn"])
@pytest.mark.usefixtures("no_gradients")
def test_ids_may_be_int32_and_the_default_dtype_anything(backend: str) -> None:
    c = plain(case(63))
    expected = expert_ffn(*c, backend=backend)
    torch.set_default_dtype(torch.bfloat16)
    try:
        dense = DenseTerm(torch.zeros(63, dtype=torch.float32), torch.zeros(63, 1).float(), torch.zeros(1, D).float())
        y = expert_ffn(*c._replace(expert=c.expert.int()), dense=dense, backend=backend)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(y, expected)


def test_packed_experts_train_on_after_unpacking() -> None:
    module = experts()
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    module.pack_for_inference()
    module.to("cpu")  # unpacks
    assert module.packed is None
    before = module.down_proj.detach().clone()
    module(torch.randn(4, D), torch.zeros(4, 2, dtype=torch.long), torch.ones(4, 2)).sum().backward()
    optimiser.step()
    assert (module.down_proj - before).abs().max() > 0


def test_packed_experts_can_be_copied_and_pickled() -> None:
    module = experts()
    module.pack_for_inference()
    saved = {name: t.clone() for name, t in module.state_dict().items()}
    for copy_ in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copy_.packed is not None
        assert all(torch.equal(t, saved[name]) for name, t in copy_.state_dict().items())


def test_moving_the_module_frees_what_was_kept_beside_it() -> None:
    module = experts()
    with torch.no_grad():
        module(torch.randn(20, D), torch.zeros(20, 2, dtype=torch.long), torch.ones(20, 2))
    assert module.gate_up_proj in packed_weights._cache
    module.to(torch.float64)
    assert module.gate_up_proj not in packed_weights._cache


def test_loading_weights_into_packed_experts_unpacks_them() -> None:
    module, other = experts(), FFNExperts(CONFIG)
    module.pack_for_inference()
    module.load_state_dict(other.state_dict())
    assert torch.equal(module.gate_up_proj, other.gate_up_proj)
