"""Zero, copy and constant experts (Eq. 3, 4, 5) as one dense, element-wise term over all tokens.

T tokens, D hidden, C constant experts, E all experts, K top-k.

Together they contribute ``x · (w_copy + Σ_c w_c α₁_c) + (w_c α₂_c) @ V`` with w the routing weights: one product with a
(T, C) matrix, no gather, no dispatch. A zero expert's contribution is its absence.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..config import MoEConfig
from ..ops import DenseTerm, add_dense, without_autocast
from .routing import INIT_STD, Routing


class ZeroComputationExperts(nn.Module):
    """``constant (C, D)``, the v of Eq. 5, and ``mix (C, 2, D)``, its W_c; both None in a layer without constants."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout()
        count = self.layout.constant
        self.constant = nn.Parameter(torch.empty(count, config.hidden_size)) if count else None
        self.mix = nn.Parameter(torch.empty(count, 2, config.hidden_size)) if count else None
        self.reset_parameters()

    def reset_parameters(self, std: float = INIT_STD) -> None:
        """Draws v from N(0, constant_init_std²) and W_c from N(0, std²)."""
        if self.constant is not None and self.mix is not None:
            nn.init.normal_(self.constant, std=self.config.constant_init_std)
            nn.init.normal_(self.mix, std=std)

    def forward(self, x: Float[Tensor, "T D"], routing: Routing) -> Float[Tensor, "T D"]:
        """These experts' share of Eq. 1, computed in float32 (float64 for float64 inputs), returned in x's dtype."""
        return add_dense(None, x, self.term(routing, self.mix_logits(x)))

    def mix_logits(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T two_C"] | None:
        """W_c x of Eq. 5 for all constant experts, before the softmax; None in a layer without constants."""
        if self.mix is None:
            return None
        exact = torch.promote_types(x.dtype, torch.float32)
        with without_autocast(x):
            return F.linear(x.to(exact), self.mix.flatten(0, 1).to(exact))

    def term(self, routing: Routing, mix_logits: Float[Tensor, "T two_C"] | None) -> DenseTerm:
        """What these experts add to each token, given the routing and :meth:`mix_logits`."""
        weight = self._dense_weight(routing)
        constants = self.layout.constant
        scale = weight[:, constants:].sum(dim=-1)
        if mix_logits is None:
            return DenseTerm(scale, None, None)
        first, second = mix_logits.unflatten(-1, (constants, 2)).unbind(-1)
        of_token = weight[:, :constants] * (first - second).sigmoid()  # a softmax over two
        of_constant = weight[:, :constants] * (second - first).sigmoid()
        return DenseTerm(scale + of_token.sum(dim=-1), of_constant, self.constant)

    def _dense_weight(self, routing: Routing) -> Tensor:
        """(T, C + copies) weights of the constant and copy experts."""
        first = self.layout.ffn
        count = self.layout.constant + self.layout.copy
        column = routing.expert - first
        inside = (column >= 0) & (column < count)
        dense = routing.weight.new_zeros(column.shape[0], count + 1)  # the last column takes everybody else
        return dense.scatter_add(1, torch.where(inside, column, count), routing.weight)[:, :count]
