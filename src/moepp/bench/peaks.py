"""What the machine can do at best: the dense matrix product and reading memory, timed beside the variants.

M rows, D hidden, F intermediate.
"""

from collections.abc import Callable

import torch

from ..config import MoEConfig

ROWS = {"cpu": 2048, "cuda": 8192}
"""Of the dense product: enough for it to be as fast as it gets."""
_PIECE = 512
READ_BYTES = 2**30
"""More than a large processor's caches hold."""


def dense_flops(config: MoEConfig, device: str) -> float:
    """Of one product of :func:`dense_products`: (M, D) by (D, 2F), the shape of an expert's first."""
    return 2.0 * ROWS[_kind(device)] * config.hidden_size * 2 * config.intermediate_size


def dense_products(config: MoEConfig, dtype: torch.dtype, device: str) -> dict[str, Callable[[], object]]:
    """The candidates for the fastest dense product; the peak is the faster one of a run.

    On a CPU, both write into memory that is there already: fresh memory costs page faults, which are no part of what
    the processor can do. oneDNN's products, private to torch, make their own, so they go over pieces small enough for
    the allocator to have it at hand; where they are missing or refuse, torch.mm (MKL) stands alone.
    """
    rows, inner, out = ROWS[_kind(device)], config.hidden_size, 2 * config.intermediate_size
    x = torch.randn(rows, inner, device=device).to(dtype)
    weight = torch.randn(out, inner, device=device).to(dtype)
    result = torch.empty(rows, out, dtype=dtype, device=device)
    found: dict[str, Callable[[], object]] = {"mm": lambda: torch.mm(x, weight.T, out=result)}
    if _kind(device) == "cpu" and torch.backends.mkldnn.is_available():
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PIECE)

            def linear() -> list[torch.Tensor]:
                product = torch.ops.mkldnn._linear_pointwise
                return [product(piece, packed, None, "none", [], "")[:1] for piece in x.split(_PIECE)]

            with torch.inference_mode():
                expected = torch.mm(x, weight.T)[::_PIECE].float()
                torch.testing.assert_close(torch.cat(linear()).float(), expected, rtol=0.05, atol=0.5)
        except (AttributeError, RuntimeError, AssertionError):
            return found
        found["onednn"] = linear
    return found


def memory_read(device: str) -> Callable[[], object]:
    """Reads :data:`READ_BYTES` once."""
    buffer = torch.ones(READ_BYTES // 4, dtype=torch.float32, device=device)
    return buffer.sum


def _kind(device: str) -> str:
    return torch.device(device).type
