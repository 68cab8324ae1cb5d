"""The one seam to fast kernels: :func:`expert_ffn` and its backends.

T tokens, D hidden, F intermediate, N FFN experts, K top-k.
"""

import functools
import logging
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BackendUnavailable, ConfigError, nearest
from .grouped import grouped_ffn
from .grouped import why_not as why_not_grouped
from .reference import reference_ffn

__all__ = ["BACKENDS", "check_backend", "expert_ffn"]

logger = logging.getLogger("moepp.ops")

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
_KERNELS: dict[str, Kernel] = {"reference": reference_ffn, "grouped": grouped_ffn}
BACKENDS = ("auto", *_KERNELS)


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
    backend: str = "auto",
) -> Float[Tensor, "T D"]:
    """``sum_k weight[t,k] * FFN_expert[t,k](x[t])``, with SwiGLU experts ``down @ (silu(gate @ x) * (up @ x))``.

    An id outside ``[0, N)`` contributes nothing and costs nothing. The sum over K is accumulated in float32 (float64
    for float64 inputs) and returned in x's dtype, which under autocast is autocast's. Rows ``0..F-1`` of ``gate_up``
    are the gate, rows ``F..2F-1`` the up projection.

    Raises:
        ConfigError: no such backend.
        BackendUnavailable: the named backend cannot run these tensors. Only ``"auto"`` picks another.
    """
    check_backend(backend)
    if torch.is_autocast_enabled(x.device.type):  # grouped_mm is not one of autocast's operators
        dtype = torch.get_autocast_dtype(x.device.type)
        x, gate_up, down = x.to(dtype), gate_up.to(dtype), down.to(dtype)
    reason = why_not_grouped(x, gate_up, down)
    if backend == "auto":
        backend = "grouped" if reason is None else "reference"
        if reason is not None:
            _say_once(f"backend 'auto' runs 'reference': {reason}")
    elif backend == "grouped" and reason is not None:
        raise BackendUnavailable(f"backend='grouped' cannot run here: {reason}; use 'auto' or 'reference'")
    with torch.autocast(x.device.type, enabled=False):
        return _KERNELS[backend](x, expert, weight, gate_up, down)


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)
