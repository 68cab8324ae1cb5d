"""The one seam to fast kernels: :func:`expert_ffn` and its backends.

T tokens, D hidden, F intermediate, N FFN experts, K top-k, C constant experts.
"""

import functools
import logging

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BackendUnavailable, ConfigError, nearest
from . import grouped, reference, triton_experts
from .backend import Backend
from .dense import DenseTerm, add_dense

__all__ = ["BACKENDS", "DenseTerm", "add_dense", "check_backend", "expert_ffn"]

logger = logging.getLogger("moepp.ops")

_BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (triton_experts.BACKEND, grouped.BACKEND, reference.BACKEND)
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
    are the gate, rows ``F..2F-1`` the up projection.

    Args:
        dense: what every token gets besides, from the zero-computation experts; a backend that can adds it in the pass
            that combines the experts' outputs.

    Raises:
        ConfigError: no such backend.
        BackendUnavailable: the named backend cannot run these tensors. Only ``"auto"`` picks another.
    """
    check_backend(backend)
    if torch.is_autocast_enabled(x.device.type):  # grouped_mm is not one of autocast's operators
        dtype = torch.get_autocast_dtype(x.device.type)
        x, gate_up, down = x.to(dtype), gate_up.to(dtype), down.to(dtype)
    chosen = _pick(x, gate_up, down) if backend == "auto" else _named(backend, x, gate_up, down)
    with torch.autocast(x.device.type, enabled=False):
        if dense is None or chosen.takes_dense:
            return chosen.run(x, expert, weight, gate_up, down, dense)
        return add_dense(chosen.run(x, expert, weight, gate_up, down, None), x, dense)


def _pick(x: Tensor, gate_up: Tensor, down: Tensor) -> Backend:
    """The first backend that suits these tokens and can run; why an earlier one cannot is said once."""
    passed_over = []
    for backend in _BACKENDS.values():
        if backend.suits(x):
            if (reason := backend.why_not(x, gate_up, down)) is None:
                for line in passed_over:
                    _say_once(f"backend 'auto' runs {backend.name!r}, not {line}")
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
