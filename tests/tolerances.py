"""How close two results must be: the only place for tolerances, so that "equal" means the same in every test.

An error is measured against the largest element of the expected tensor. An element-wise relative error would ask
for digits that cancellation has removed (a gradient near 0), and an absolute one would depend on the sizes of a test.
"""

import torch
from torch import Tensor

# About 2**-8, 2**-11 and 2**-24 is one rounding of bfloat16, float16 and float32; a layer makes a handful of them.
RELATIVE_TO_LARGEST = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}


def assert_close(
    actual: Tensor,
    expected: Tensor,
    *,
    like: torch.dtype | None = None,
    within: float | None = None,
    name: str = "result",
) -> None:
    """``actual`` equals ``expected`` up to the rounding of ``like``, by default the dtype that ``actual`` came in."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if actual.numel() == 0:
        return
    tolerance = within or RELATIVE_TO_LARGEST[like or actual.dtype]
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert actual.isfinite().all(), f"{name} is not finite"
    largest = expected.abs().max().item()
    error = (actual - expected).abs().max().item()
    assert error <= tolerance * max(largest, 1e-3), (
        f"{name}: error {error:.3e}, largest element {largest:.3e}, allowed {tolerance:.0e} of it"
    )
