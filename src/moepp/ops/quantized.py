"""Weight-only quantisation for decoding, where reading the experts' weights is all that takes time.

T tokens, D hidden, F intermediate, N FFN experts, K top-k, R rows (output channels) and C columns of one weight matrix,
M tokens of one expert, G columns of one group.

torch's own CPU kernels, which torchao's fastest CPU paths call too (docs/decisions/0006-quantized-kernels.md):

int8   w = code · scale, code in [-127, 127], one bfloat16 scale per row
int4   w = (code - 8) · scale + zero, code in [0, 15], one bfloat16 pair per row and group of G = 32 columns

Both are fast for bfloat16 tokens only, so tokens of any dtype are rounded to it, which loses less than the weights did.
An expert's weights are read where they lie: nothing is gathered, and an expert without tokens is not touched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BackendUnavailable, ConfigError

GROUP = 32
_ROWS = 16  # int4's kernel takes rows by so many
_COMPUTE = torch.bfloat16
_LARGEST = {"int8": 127, "int4": 15}


class Quantized(NamedTuple):
    """One stacked weight, in the layout that its scheme's kernel reads."""

    codes: Tensor
    scale: Tensor
    """bfloat16; a model that was cast to another dtype took it along."""


@dataclass(frozen=True)
class Scheme:
    """One way to store a (R, C) weight matrix in fewer bits."""

    name: str
    why_not: Callable[[int, int], str | None]
    """The reason why it cannot store R rows of C columns; None if it can."""
    quantize: Callable[[Tensor], Quantized]
    """One float32 (R, C) matrix."""
    product: Callable[[Tensor, Tensor, Tensor], Tensor]
    """``x @ w.T`` of (M, C) tokens, codes and scale."""


def _quantize_int8(w: Float[Tensor, "R C"]) -> Quantized:
    """To the nearest multiple of the row's scale, which takes the row's largest weight to 127."""
    # The scale is rounded before it is divided by, so that what it is multiplied with again is exact.
    scale = (w.abs().amax(-1) / _LARGEST["int8"]).to(_COMPUTE)
    steps = w / _nonzero(scale.float()).unsqueeze(-1)
    return Quantized(steps.round_().clamp_(-_LARGEST["int8"], _LARGEST["int8"]).to(torch.int8), scale)


def _product_int8(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    return torch.ops.aten._weight_int8pack_mm(x, codes, scale)


def _quantize_int4(w: Float[Tensor, "R C"]) -> Quantized:
    """Each group's range is cut into 15 steps; packed two codes a byte, in the order of this processor's kernel."""
    groups = w.unflatten(-1, (-1, GROUP))
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / _LARGEST["int4"]).to(_COMPUTE)
    zero = (low + 8 * scale.float()).to(_COMPUTE)
    steps = (groups - zero.float().unsqueeze(-1)).div_(_nonzero(scale.float()).unsqueeze(-1))
    codes = steps.round_().add_(8).clamp_(0, _LARGEST["int4"]).to(torch.int32).flatten(-2)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)  # 1: tiles matter on GPUs only
    return Quantized(packed, torch.stack([scale, zero], dim=-1).transpose(0, 1).contiguous())


def _product_int4(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, GROUP, scale)


def _nonzero(scale: Tensor) -> Tensor:
    """A row of equal weights has no range; whatever its scale, its codes are what they should be."""
    return torch.where(scale > 0, scale, 1)


def _why_not_int4(rows: int, columns: int) -> str | None:
    if rows % _ROWS or columns % GROUP:
        return f"its kernel takes rows by {_ROWS} and columns by {GROUP}, and a weight is {rows} x {columns}"
    return None


_SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8", lambda *_: None, _quantize_int8, _product_int8),
        Scheme("int4", _why_not_int4, _quantize_int4, _product_int4),
    )
}
SCHEMES = tuple(_SCHEMES)


def bytes_per_weight(scheme: str) -> float:
    """Of large matrices; int8's scales, one in a row, are left out."""
    return {"int8": 1.0, "int4": 0.5 + 2 * _COMPUTE.itemsize / GROUP}[scheme]


def check_scheme(scheme: str) -> None:
    """Raises ConfigError when no scheme has this name."""
    if scheme not in SCHEMES:
        raise ConfigError(f"scheme={scheme!r} does not exist; choose one of {', '.join(SCHEMES)}")


@torch.no_grad()
def quantize(w: Float[Tensor, "N R C"], scheme: str) -> Quantized:
    """Quantises each expert's matrix.

    Raises:
        ConfigError: no such scheme, or it cannot store weights of this shape.
        BackendUnavailable: the weights are not on a CPU.
    """
    check_scheme(scheme)
    chosen = _SCHEMES[scheme]
    if (reason := chosen.why_not(*w.shape[1:])) is not None:
        raise ConfigError(f"scheme={scheme!r} cannot store these experts: {reason}; use 'int8'")
    _require_cpu(w)
    codes, scales = zip(*(chosen.quantize(one.float()) for one in w.unbind(0)), strict=True)
    return Quantized(torch.stack(codes), torch.stack(scales))


def quantized_ffn(
    x: Float[Tensor, "T D"],
    expert: Int[Tensor, "T K"],
    weight: Float[Tensor, "T K"],
    gate_up: Quantized,
    down: Quantized,
    *,
    scheme: str,
) -> Float[Tensor, "T D"]:
    """:func:`moepp.expert_ffn` with quantised weights, for inference.

    Raises:
        BackendUnavailable: gradients are wanted, or the tokens are not on a CPU.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        raise BackendUnavailable(
            f"{scheme} experts have no gradients; run under torch.inference_mode(), or train before quantising"
        )
    _require_cpu(x)
    product = _SCHEMES[scheme].product
    rows = x.to(_COMPUTE).contiguous()
    y = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))

    def swiglu(x: Tensor, index: int) -> Tensor:
        gate, up = product(x, gate_up.codes[index], gate_up.scale[index].to(_COMPUTE)).chunk(2, dim=-1)
        return product(F.silu(gate) * up, down.codes[index], down.scale[index].to(_COMPUTE))

    chosen = expert.flatten().tolist()
    if len(x) == 1:  # looking for an expert's tokens would take a fifth of the time
        for index, share in zip(chosen, weight.flatten().tolist(), strict=True):
            if 0 <= index < len(gate_up.codes):
                y.add_(swiglu(rows, index), alpha=share)
        return y.to(x.dtype)
    for index in sorted(set(chosen)):
        if 0 <= index < len(gate_up.codes):
            token, slot = (expert == index).nonzero(as_tuple=True)
            y.index_add_(0, token, swiglu(rows[token], index).to(y.dtype) * weight[token, slot, None].to(y.dtype))
    return y.to(x.dtype)


def _require_cpu(tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise BackendUnavailable(
            f"quantised experts run on a CPU, and these tensors are on {tensor.device}; use model.to('cpu')"
        )
