"""What a kernel tells :func:`moepp.expert_ffn` about itself."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .dense import DenseTerm

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, DenseTerm | None], Tensor]
WhyNot = Callable[[Tensor, Tensor, Tensor], str | None]


@dataclass(frozen=True)
class Backend:
    """One way to run FFN experts."""

    name: str
    run: Kernel
    """``(x, expert, weight, gate_up, down, dense)``; dense is None unless ``takes_dense``."""
    why_not: WhyNot
    """The reason why it cannot run ``(x, gate_up, down)`` here and now; None if it can."""
    suits: Callable[[Tensor, Tensor, Tensor], bool] = lambda *_: True
    """Whether ``"auto"`` considers it for ``(x, gate_up, down)``. If it does and it cannot run, auto says so once."""
    takes_dense: bool = False
    """Whether it adds a :class:`DenseTerm` in the pass that combines the experts' outputs."""
    converts_weights: bool = False
    """Whether it takes weights of another dtype than x's and converts them itself, once."""
