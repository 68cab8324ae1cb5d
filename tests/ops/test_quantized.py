"""Quantised experts against the float64 reference, on the weights that their codes stand for and on the full ones."""

import pytest
import torch
from torch import Tensor

from moepp import expert_ffn
from moepp.errors import BackendUnavailable, ConfigError
from moepp.ops.quantized import GROUP, SCHEMES, Quantized, quantize, quantized_ffn

from ..factory import randn
from ..tolerances import assert_close
from .test_expert_ffn import Case

D, F, N, K = 64, 96, 4, 2
TOKENS = [1, 2, 8, 63]
STEPS = {"int8": 127, "int4": 7.5}
"""Half a step of quantisation is the largest weight (int8) or half the range (int4) over twice this."""


def case(tokens: int, dtype: torch.dtype = torch.float32, *, low: int = 0, high: int = N) -> Case:
    """Random arguments; ids are drawn from ``[low, high)``."""
    return Case(
        x=randn(tokens, D, seed=1, dtype=dtype),
        expert=torch.randint(low, high, (tokens, K), generator=torch.Generator().manual_seed(tokens)),
        weight=randn(tokens, K, seed=2, dtype=torch.float32),
        gate_up=randn(N, 2 * F, D, seed=3, dtype=dtype) * D**-0.5,
        down=randn(N, D, F, seed=4, dtype=dtype) * F**-0.5,
    )


def run(c: Case, scheme: str) -> Tensor:
    return quantized_ffn(c.x, c.expert, c.weight, quantize(c.gate_up, scheme), quantize(c.down, scheme), scheme=scheme)


def bf16(values: Tensor) -> Tensor:
    """Rounded to bfloat16, in float64."""
    return values.to(torch.bfloat16).double()


def stored(w: Tensor, scheme: str) -> Tensor:
    """What quantised weights stand for, in float64, from the schemes' definition."""
    w = w.double()
    if scheme == "int8":
        scale = bf16(w.abs().amax(-1, keepdim=True) / 127)
        return (w / scale).round().clamp(-127, 127) * scale
    groups = w.unflatten(-1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = bf16((high - low) / 15)
    zero = bf16(low + 8 * scale)
    return (((groups - zero) / scale).round().clamp(-8, 7) * scale + zero).flatten(-2)


def exact(c: Case) -> Tensor:
    """With the full weights."""
    return expert_ffn(
        c.x.double(), c.expert, c.weight.double(), c.gate_up.double(), c.down.double(), backend="reference"
    )


def expected(c: Case, scheme: str) -> Tensor:
    """With the stored weights, and tokens in the dtype that the kernels take."""
    return exact(c._replace(x=bf16(c.x), gate_up=stored(c.gate_up, scheme), down=stored(c.down, scheme)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_output_is_that_of_the_stored_weights(scheme: str, tokens: int, dtype: torch.dtype) -> None:
    c = case(tokens, dtype)
    y = run(c, scheme)
    assert y.dtype == dtype
    assert_close(y, expected(c, scheme), like=torch.bfloat16)  # in which the products are taken


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_column_of_ones_at_a_time_gives_back_the_stored_weights(scheme: str) -> None:
    """Through the kernel itself: one code or scale out of place would show at full size, not as an average's noise."""
    from moepp.ops.quantized import _SCHEMES

    w = randn(1, 64, 96, seed=5, dtype=torch.float32)
    codes, scale = quantize(w, scheme)
    back = _SCHEMES[scheme].product(torch.eye(96, dtype=torch.bfloat16), codes[0], scale[0]).T
    assert (back.double() - stored(w[0], scheme)).abs().max() <= 2**-8 * w.abs().max()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_weight_is_further_off_than_half_a_step(scheme: str) -> None:
    w = randn(3, 32, 64, seed=6, dtype=torch.float32).double()
    groups = w.unflatten(-1, (-1, GROUP)) if scheme == "int4" else w
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    largest = torch.maximum(low.abs(), high.abs()) if scheme == "int8" else (high - low) / 2
    step = largest / STEPS[scheme]
    # Scale and zero are rounded to eight bits, which shifts the ends of the range.
    slack = 2**-8 * torch.maximum(low.abs(), high.abs()) * (2 if scheme == "int4" else 1)
    off = (stored(w, scheme) - w).abs().unflatten(-1, groups.shape[2:])
    assert (off <= step / 2 + slack).all()


@pytest.mark.parametrize(("scheme", "allowed"), [("int8", 0.02), ("int4", 0.2)])
@pytest.mark.parametrize("tokens", TOKENS)
def test_output_stays_close_to_the_full_weights(scheme: str, allowed: float, tokens: int) -> None:
    c = case(tokens)
    full = exact(c)
    error = (run(c, scheme).double() - full).norm() / full.norm()
    assert error < allowed
    assert error > allowed / 20  # else the full weights ran


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_ids_outside_contribute_nothing(scheme: str, tokens: int) -> None:
    c = case(tokens, low=-2, high=N + 3)
    c.expert[0] = torch.tensor([1, N])
    assert_close(run(c, scheme), expected(c, scheme), like=torch.bfloat16)
    assert not run(c._replace(expert=torch.tensor([[-1, N + 5]] * tokens)), scheme).any()


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_expert_without_tokens_is_not_touched(scheme: str, tokens: int) -> None:
    c = case(tokens)
    c.expert.copy_(torch.tensor([0, 2]))
    gate_up, down = quantize(c.gate_up, scheme), quantize(c.down, scheme)
    for untouched in (1, 3):  # whoever read its scale would return NaN
        gate_up.scale[untouched] = torch.nan
        down.scale[untouched] = torch.nan
    y = quantized_ffn(c.x, c.expert, c.weight, gate_up, down, scheme=scheme)
    assert_close(y, expected(c, scheme), like=torch.bfloat16)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_tokens_give_no_rows(scheme: str) -> None:
    assert run(case(0), scheme).shape == (0, D)


@pytest.mark.parametrize("tokens", [1, 63])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_token_may_choose_one_expert_twice_and_tensors_need_not_be_contiguous(scheme: str, tokens: int) -> None:
    c = case(tokens)
    c = c._replace(x=c.x.t().contiguous().t(), expert=c.expert[:, :1].expand(-1, K))
    assert_close(run(c, scheme), expected(c, scheme), like=torch.bfloat16)


@pytest.mark.parametrize("value", [0.0, -0.5, 3.0])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_equal_weights_are_kept(scheme: str, value: float) -> None:
    """Their range is zero, and nothing may be divided by it."""
    c = case(8)
    c.down[:] = value
    full_down = exact(c._replace(x=bf16(c.x), gate_up=stored(c.gate_up, scheme)))
    assert_close(run(c, scheme), full_down, like=torch.bfloat16)


def test_int8_takes_a_quarter_of_float32_and_int4_less_than_a_sixth() -> None:
    w = randn(2, 512, 512, seed=7, dtype=torch.float32)
    size = {scheme: sum(t.nbytes for t in quantize(w, scheme)) / w.nbytes for scheme in SCHEMES}
    assert size["int8"] == pytest.approx((8 + 16 / 512) / 32)
    assert size["int4"] == pytest.approx((4 + 32 / GROUP) / 32)


@pytest.mark.parametrize("needs", ["x", "weight"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_wanted_gradients_are_refused(scheme: str, needs: str) -> None:
    c = case(2)
    getattr(c, needs).requires_grad_()
    with pytest.raises(
        BackendUnavailable, match=rf"^{scheme} experts have no gradients; run under torch.inference_mode"
    ):
        run(c, scheme)
    with torch.no_grad():
        assert run(c, scheme).isfinite().all()


def test_unknown_scheme_names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"^scheme='int3' does not exist; choose one of int8, int4$"):
        quantize(torch.ones(1, 16, 32), "int3")


@pytest.mark.parametrize("shape", [(2, 24, 32), (2, 32, 48)], ids=["rows", "columns"])
def test_int4_says_which_shapes_it_cannot_store(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"rows by 16 and columns by 32.*{shape[1]} x {shape[2]}; use 'int8'"):
        quantize(torch.ones(shape), "int4")
    assert isinstance(quantize(torch.ones(shape), "int8"), Quantized)


def test_another_device_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match=r"run on a CPU.*on meta; use model.to\('cpu'\)"):
        quantize(torch.ones(1, 16, 32, device="meta"), "int8")
