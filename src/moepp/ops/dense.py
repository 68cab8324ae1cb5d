"""What every token gets besides its FFN experts: the zero-computation experts' term, ``x · scale + shift @ constant``.

T tokens, D hidden, C constant experts.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .autocast import without_autocast


class DenseTerm(NamedTuple):
    """In float32, or float64 for float64 tokens."""

    scale: Float[Tensor, "T"]
    """Of the token itself: copy experts' weights and the constant experts' first halves."""
    shift: Float[Tensor, "T C"] | None
    """Of each constant vector; None in a layer without constants."""
    constant: Float[Tensor, "C D"] | None


def add_dense(y: Float[Tensor, "T D"] | None, x: Float[Tensor, "T D"], dense: DenseTerm) -> Float[Tensor, "T D"]:
    """``y + x · scale + shift @ constant``, computed in the term's dtype, returned in x's; no y is y = 0."""
    exact = dense.scale.dtype
    with without_autocast(x):
        out = x.to(exact) * dense.scale.unsqueeze(-1)
        if y is not None:
            out = out + y
        if dense.shift is not None and dense.constant is not None:
            out = torch.addmm(out, dense.shift, dense.constant.to(exact))
        return out.to(x.dtype)
