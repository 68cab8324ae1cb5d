"""Inference on a CPU: oneDNN's matrix products with weights packed once and SwiGLU in their epilogue.

T tokens, D hidden, F intermediate, N FFN experts, K top-k.

oneDNN wants weights in blocks; brought into that order once, they save each product a copy of them. Its products take
an activation and a product with another tensor as their last step, so ``silu(gate) * up`` costs no pass of its own.

oneDNN generates code for every number of rows that it meets, about a millisecond each time. A router never sends an
expert the same number twice, so rows are padded to one of 32 sizes an octave.

The operators are torch's own but private: they are tried once at the start, and what fails says why.
"""

import functools
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BackendUnavailable
from . import packed_weights
from .backend import Backend
from .dense import DenseTerm
from .dispatch import combine, dispatch, result_rows

DTYPES = (torch.float32, torch.bfloat16)
_CHUNK = 512  # rows at a time: their intermediate results stay in the cache
_DECODE = 8  # tokens up to which sorting costs more than it saves
_TYPICAL_ROWS = 64  # what the blocks are chosen for; other numbers of rows run with them equally well


@dataclass(frozen=True)
class Packed:
    """The experts' weights in oneDNN's order; opaque to everything but its products."""

    gate: list[Tensor]
    up: list[Tensor]
    down: list[Tensor]

    def __len__(self) -> int:
        return len(self.gate)

    def __call__(self, x: Tensor, index: int) -> Tensor:
        """Expert ``index`` on (rows, D)."""
        linear = torch.ops.mkldnn._linear_pointwise
        gate = linear(x, self.gate[index], None, "swish", [], "")
        return linear(linear.binary(x, gate, self.up[index], None, "mul"), self.down[index], None, "none", [], "")

    @property
    def dtype(self) -> torch.dtype:
        return self.gate[0].dtype

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles pack anew: torch can do neither with packed tensors."""
        return pack, (*self.unpack(), self.dtype)

    def unpack(self) -> tuple[Tensor, Tensor]:
        """``gate_up (N, 2F, D)`` and ``down (N, D, F)``, bit for bit what was packed."""
        gate_up = [torch.cat([g.to_dense(), u.to_dense()]) for g, u in zip(self.gate, self.up, strict=True)]
        return torch.stack(gate_up), torch.stack([d.to_dense() for d in self.down])


@dataclass(frozen=True)
class _Plain:
    """The experts' weights as they are."""

    gate_up: Tensor
    down: Tensor

    def __len__(self) -> int:
        return len(self.gate_up)

    def __call__(self, x: Tensor, index: int) -> Tensor:
        gate, up = F.linear(x, self.gate_up[index]).chunk(2, dim=-1)
        return F.linear(F.silu(gate).mul_(up), self.down[index])


def pack(gate_up: Tensor, down: Tensor, dtype: torch.dtype) -> Packed:
    """Packs ``gate_up (N, 2F, D)`` and ``down (N, D, F)``, converted to ``dtype`` one expert at a time."""

    def packed(weights: Tensor) -> list[Tensor]:
        reorder = torch.ops.mkldnn._reorder_linear_weight
        return [reorder(w.to(dtype).contiguous(), _TYPICAL_ROWS) for w in weights.detach().unbind(0)]

    gate, up = gate_up.chunk(2, dim=1)
    return Packed(packed(gate), packed(up), packed(down))


def why_not(x: Tensor, gate_up: Tensor, down: Tensor) -> str | None:
    """The reason why this backend cannot run these tensors; None if it can."""
    if torch.compiler.is_compiling():
        return "packed weights cannot be traced by torch.compile"
    return why_not_pack(x.dtype, gate_up, down)


def why_not_pack(dtype: torch.dtype, gate_up: Tensor, down: Tensor) -> str | None:
    """The reason why these weights cannot be packed as ``dtype``; None if they can."""
    if gate_up.device.type != "cpu":
        return f"it runs on CPUs and these tensors are on {gate_up.device.type!r}"
    if dtype not in DTYPES:
        return f"it does not take {dtype}"
    if gate_up.is_inference() or down.is_inference():
        return "weights made under torch.inference_mode do not tell when they change; make them under torch.no_grad"
    return _does_not_work(dtype)


@functools.cache
def _does_not_work(dtype: torch.dtype) -> str | None:
    """Tries the private operators on a small case; None if the result is right."""
    try:
        make = {"generator": torch.Generator("cpu").manual_seed(0), "dtype": torch.float32, "device": "cpu"}
        gate_up, down, x = (torch.randn(shape, **make) for shape in ((1, 64, 32), (1, 32, 32), (16, 32)))
        with torch.no_grad():
            got = pack(gate_up, down, dtype)(x.to(dtype), 0).double()
        gate, up = (x.to(dtype).double() @ gate_up[0].to(dtype).double().T).chunk(2, dim=-1)
        expected = F.silu(gate) * up @ down[0].to(dtype).double().T
    except (AttributeError, RuntimeError, TypeError) as error:
        return f"torch {torch.__version__} has no working oneDNN products ({str(error).splitlines()[0]})"
    if (got - expected).abs().max() > 0.03 * expected.abs().max():
        return f"oneDNN's products of torch {torch.__version__} give wrong results for {dtype}"
    return None


def onednn_ffn(
    x: Tensor, expert: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, dense: DenseTerm | None = None
) -> Tensor:
    """See :func:`moepp.ops.expert_ffn`."""
    _require_no_gradients(x, weight, gate_up, down, *(dense or ()))
    if len(x) <= _DECODE and x.dtype == gate_up.dtype == torch.float32:
        # A product with a vector reads float32 weights at the memory's speed as they are.
        return _finish(_few_tokens(x, expert, weight, _Plain(gate_up, down)), x, dense)
    packed = packed_weights.of(gate_up, down, x.dtype, lambda: pack(gate_up, down, x.dtype))
    return packed_ffn(x, expert, weight, packed, dense)


def packed_ffn(x: Tensor, expert: Tensor, weight: Tensor, packed: Packed, dense: DenseTerm | None = None) -> Tensor:
    """:func:`moepp.ops.expert_ffn` with packed weights; (T, D) in x's dtype.

    Raises:
        BackendUnavailable: gradients are wanted, or the weights were packed in another dtype than x's.
    """
    _require_no_gradients(x, weight, *(dense or ()))
    if x.dtype != packed.dtype:
        raise BackendUnavailable(
            f"experts packed as {packed.dtype} cannot take tokens in {x.dtype}; convert the model, then pack it"
        )
    run = _few_tokens if len(x) <= _DECODE else _many_tokens
    with torch.no_grad():
        return _finish(run(x, expert, weight, packed), x, dense)


def _require_no_gradients(*tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise BackendUnavailable(
            "backend='onednn' and packed experts compute no gradients; use torch.no_grad(), or unpacked experts on "
            "another backend to train"
        )


def _finish(y: Tensor, x: Tensor, dense: DenseTerm | None) -> Tensor:
    """Adds the dense term to a float32 ``y`` that nobody else holds."""
    if dense is not None:
        y.addcmul_(x.to(y), dense.scale.unsqueeze(-1))
        if dense.shift is not None and dense.constant is not None:
            y.addmm_(dense.shift, dense.constant.to(y))
    return y.to(x.dtype)


def _many_tokens(x: Tensor, expert: Tensor, weight: Tensor, experts: Packed | _Plain) -> Tensor:
    where = dispatch(expert, len(experts))
    rows = result_rows(where, x.shape[1])
    taken = x.new_zeros(_padded(_CHUNK), x.shape[1])
    for index in range(len(experts)):
        start, stop = where.bounds[index : index + 2]
        pieces = -(-(stop - start) // _CHUNK)
        for piece in range(pieces):
            first = start + (stop - start) * piece // pieces
            last = start + (stop - start) * (piece + 1) // pieces
            torch.index_select(x, 0, where.token[first:last], out=taken[: last - first])
            rows[first:last] = experts(taken[: _padded(last - first)], index)[: last - first]
    return combine(rows, where, weight)


def _few_tokens(x: Tensor, expert: Tensor, weight: Tensor, experts: Packed | _Plain) -> Tensor:
    """Decoding: reads the chosen experts' weights and nothing else, each once."""
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    pairs = sorted(
        (index, token, share)
        for token, (ids, shares) in enumerate(zip(expert.tolist(), weight.tolist(), strict=True))
        for index, share in zip(ids, shares, strict=True)
        if 0 <= index < len(experts)
    )
    if len(x) == 1:
        for index, _, share in pairs:
            y.add_(experts(x.contiguous(), index), alpha=share)
    elif pairs:
        token = torch.tensor([token for _, token, _ in pairs], device=x.device)
        share = torch.tensor([share for _, _, share in pairs], dtype=y.dtype, device=x.device)
        rows = x[token]
        taken = Counter(index for index, _, _ in pairs)  # in the pairs' order
        outs = [experts(part, index) for part, index in zip(rows.split(list(taken.values())), taken, strict=True)]
        y.index_add_(0, token, torch.cat(outs).to(y) * share.unsqueeze(-1))
    return y


def _padded(rows: int) -> int:
    """The next of the sizes 1 … 64, 66, 68 … 128, 132, 136 … 256, 264 …"""
    step = 1 << max(0, (rows - 1).bit_length() - 6)
    return -(-rows // step) * step


def _suits(x: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    """Adapters and parallel plans compute or cut out the weights anew at each call; each would be packed for once."""
    lasting = isinstance(gate_up, torch.nn.Parameter) and isinstance(down, torch.nn.Parameter)
    return x.device.type == "cpu" and lasting and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


BACKEND = Backend("onednn", onednn_ffn, why_not, suits=_suits, takes_dense=True, converts_weights=True)
