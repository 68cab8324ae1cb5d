"""The one seam to fast kernels: :func:`expert_ffn` and its backends.

T tokens, D hidden, F intermediate, N FFN experts, K top-k, C constant experts.
"""

import functools
import logging

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import BackendUnavailable, ConfigError, nearest
from . import fused, grouped, memory, onednn, packed_weights, reference, triton_experts
from .autocast import autocasted, without_autocast
from .backend import Backend
from .dense import DenseTerm, add_dense
from .onednn import Packed, packed_ffn

__all__ = [
    "BACKENDS",
    "DenseTerm",
    "Packed",
    "add_dense",
    "autocasted",
    "check_backend",
    "expert_ffn",
    "pack_weights",
    "packed_ffn",
    "release",
    "without_autocast",
]

logger = logging.getLogger("moepp.ops")

_BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        onednn.BACKEND,
        fused.BACKEND,
        triton_experts.BACKEND,
        grouped.BACKEND,
        reference.BACKEND,
        fused.RECOMPUTE,
    )
}
"""In the order of auto's preference."""
BACKENDS = ("auto", *_BACKENDS)


def check_backend(backend: str) -> None:
    """Raises ConfigError when no backend has this name."""
    if backend not in BACKENDS:
        raise ConfigError(f"backend={backend!r} does not exist; {nearest(backend, BACKENDS)}")


def expert_ffn(
    x: Float[Tensor, "T D"],
    expert: Int[Tensor, "T K"],
    weight: Float[Tensor, "T K"],
    gate_up: Float[Tensor, "N two_F D"],
    down: Float[Tensor, "N D F"],
    *,
    dense: DenseTerm | None = None,
    backend: str = "auto",
) -> Float[Tensor, "T D"]:
    """``sum_k weight[t,k] * FFN_expert[t,k](x[t])``, with SwiGLU experts ``down @ (silu(gate @ x) * (up @ x))``.

    An id outside ``[0, N)`` contributes nothing and costs nothing. The sum over K is accumulated in float32 (float64
    for float64 inputs) and returned in x's dtype, which under autocast is autocast's. Rows ``0..F-1`` of ``gate_up``
    are the gate, rows ``F..2F-1`` the up projection. ``"auto"`` packs weights (see :mod:`moepp.ops.onednn`) only where
    they are an ``nn.Parameter``: other tensors may be new at each call.

    Args:
        dense: what every token gets besides, from the zero-computation experts; a backend that can adds it in the pass
            that combines the experts' outputs.

    Raises:
        ConfigError: no such backend.
        BackendUnavailable: the named backend cannot run these tensors, where only ``"auto"`` picks another; or the
            weights are of a kind that none reads, such as torchao's quantised ones.
    """
    check_backend(backend)
    plain = type(gate_up) is torch.nn.Parameter or torch.compiler.is_compiling()
    if not plain and is_traceable_wrapper_subclass(gate_up):
        raise BackendUnavailable(
            f"experts' weights of type {type(gate_up).__name__} are read by no kernel here; leave them out of what is "
            "quantised or sharded, and use moepp.model.quantize_experts for 8 or 4 bits"
        )
    x = autocasted(x)
    chosen = _pick(x, gate_up, down) if backend == "auto" else _named(backend, x, gate_up, down)
    if not chosen.converts_weights and not torch.compiler.is_compiling():
        packed_weights.forget(gate_up)  # in training it would be outdated by the next step
    if not chosen.converts_weights and torch.is_autocast_enabled(x.device.type):
        gate_up, down = gate_up.to(x.dtype), down.to(x.dtype)
    with without_autocast(x):
        if dense is None or chosen.takes_dense:
            return chosen.run(x, expert, weight, gate_up, down, dense)
        return add_dense(chosen.run(x, expert, weight, gate_up, down, None), x, dense)


def pack_weights(gate_up: Float[Tensor, "N two_F D"], down: Float[Tensor, "N D F"]) -> Packed:
    """The weights in the order that :func:`packed_ffn` reads.

    Raises:
        BackendUnavailable: they cannot be packed here; says why.
    """
    if (reason := onednn.why_not_pack(gate_up.dtype, gate_up, down)) is not None:
        raise BackendUnavailable(f"the experts' weights cannot be packed: {reason}; leave them as they are")
    packed_weights.forget(gate_up)
    return onednn.pack(gate_up, down, gate_up.dtype)


def release(gate_up: Tensor, down: Tensor) -> None:
    """Frees what backends keep beside these weights: a packed copy, and memory for their gradients."""
    packed_weights.forget(gate_up)
    for weight in (gate_up, down):
        memory.forget(weight)


def _pick(x: Tensor, gate_up: Tensor, down: Tensor) -> Backend:
    """The first backend that suits these tensors and can run; why an earlier one cannot is said once."""
    passed_over = []
    for backend in _BACKENDS.values():
        if backend.suits(x, gate_up, down):
            if (reason := backend.why_not(x, gate_up, down)) is None:
                if passed_over:
                    _say_once(f"backend 'auto' runs {backend.name!r}, not {'; not '.join(passed_over)}")
                return backend
            passed_over.append(f"{backend.name!r}: {reason}")
    raise AssertionError("the reference runs everything")


def _named(name: str, x: Tensor, gate_up: Tensor, down: Tensor) -> Backend:
    backend = _BACKENDS[name]
    if (reason := backend.why_not(x, gate_up, down)) is not None:
        raise BackendUnavailable(f"backend={name!r} cannot run here: {reason}; use 'auto' or 'reference'")
    return backend


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)
