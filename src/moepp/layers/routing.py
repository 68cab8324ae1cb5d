"""The pathway-aware router (Eq. 2, Eq. 6) and what it decides, :class:`Routing`.

T tokens, D hidden, E all experts, K top-k.

The router runs in float32 whatever the model's dtype (float64 for float64 inputs), autocast or not: a choice between
two experts should not turn on a rounding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..config import MoEConfig
from ..ops import without_autocast
from ..ops.routing import can_fuse_routing, fused_routing

INIT_STD = 0.02
TANH_WIDTH = 8  # hidden width of the tanh gate, in experts


class Routing(NamedTuple):
    """Everything one layer decided about T tokens."""

    logits: Float[Tensor, "T E"]
    """With the gating residual; what the next layer's router receives. Never normalised, biased or edited."""
    probs: Float[Tensor, "T E"]
    expert: Int[Tensor, "T K"]
    """The chosen experts, the most probable first. An id outside ``[0, E)`` contributes nothing."""
    weight: Float[Tensor, "T K"]
    """What each chosen expert's output is multiplied by; 0 where dropped."""
    kept: Bool[Tensor, "T K"]
    """False where capacity dropped the assignment, where the token is padding, or where the expert is disabled."""


class Matrix(nn.Module):
    """``x @ weight.T`` in x's dtype, whatever the weight's.

    Not an ``nn.Linear``: what quantises or adapts a model's linear layers must not take the router's among them.
    """

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))

    def forward(self, x: Float[Tensor, "T columns"]) -> Float[Tensor, "T rows"]:
        return F.linear(x, self.weight.to(x))


class Router(nn.Module):
    """Chooses K experts for each token. Capacity is :class:`moepp.MoE`'s affair.

    Parameters: ``weight (E, D)``; ``residual.weight (E, E)``, the W^g of Eq. 6, unless this is the first MoE layer or
    the configuration has no gating residual: there it would never receive a gradient. With ``gate="tanh_mlp"``:
    ``hidden.weight (8E, D)`` and ``weight (E, 8E)``.
    """

    def __init__(self, config: MoEConfig, *, first: bool = False) -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout()
        experts = self.layout.num_experts
        width = config.hidden_size
        self.hidden = None
        if config.gate == "tanh_mlp":
            width = TANH_WIDTH * experts
            self.hidden = Matrix(config.hidden_size, width)
        self.weight = nn.Parameter(torch.empty(experts, width))
        self.residual = Matrix(experts, experts) if config.gating_residual and not first else None
        self.reset_parameters()

    def reset_parameters(self, std: float = INIT_STD) -> None:
        """Draws W from N(0, std²) and W^g from N(0, residual_init_std²)."""
        if self.hidden is not None:
            nn.init.normal_(self.hidden.weight, std=std)
        nn.init.normal_(self.weight, std=std)
        if self.residual is not None:
            nn.init.normal_(self.residual.weight, std=self.config.residual_init_std)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        previous: Float[Tensor, "T E"] | None = None,
        *,
        selection_bias: Float[Tensor, "E"] | None = None,
        projected: Float[Tensor, "T P"] | None = None,
        backend: str = "auto",
    ) -> Routing:
        """Routes T tokens.

        Args:
            x: tokens, any floating dtype.
            previous: the previous layer's ``Routing.logits``. None, or a router without a residual matrix, leaves
                Eq. 6's second term out.
            selection_bias: added to the scores for choosing only; the weights don't see it. ``-inf`` disables an
                expert.
            projected: ``x @ self.projection.T`` in float32, where the caller has it already.
            backend: the experts'; ``"triton"`` makes everything that follows from float32 logits one kernel.
        """
        with without_autocast(x):
            logits = self._logits(self._project(x) if projected is None else projected, previous)
            if backend == "triton" and can_fuse_routing(logits):
                return Routing(logits, *self._fused(logits, selection_bias))
            scores = logits if self.config.logits_std is None else _normalise(logits) * self.config.logits_std
            probs = scores.softmax(dim=-1)
            ranking = scores.detach() if selection_bias is None else scores.detach() + selection_bias
            # A stable sort rather than topk: ties go to the lower expert index, on every device.
            order = ranking.sort(dim=-1, descending=True, stable=True)
            expert = order.indices[:, : self.config.top_k]
            kept = order.values[:, : self.config.top_k] > -torch.inf
            return Routing(logits, probs, expert, self._weight(scores, probs, expert, kept), kept)

    @property
    def projection(self) -> Float[Tensor, "P D"]:
        """The matrix that meets the tokens: W, or the first of the tanh gate's two."""
        return self.weight if self.hidden is None else self.hidden.weight

    def _project(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.linear(x, self.weight.to(x)) if self.hidden is None else self.hidden(x)

    def _logits(self, projected: Tensor, previous: Tensor | None) -> Tensor:
        logits = projected
        if self.hidden is not None:
            logits = F.linear(projected.tanh(), self.weight.to(projected))
        if self.residual is not None and previous is not None:
            return logits + self.residual(previous.to(logits))
        # A copy where W_c's product lies beside it: FSDP2 hooks into what a layer returns, and warns of views.
        return logits.contiguous()

    def _fused(self, logits: Tensor, selection_bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config = self.config
        zeros = self.layout.indices("zero")
        rule = {"top_k": config.top_k, "combine": config.combine, "zeros": zeros, "logits_std": config.logits_std}
        return fused_routing(logits, selection_bias, **rule)

    def _weight(self, scores: Tensor, probs: Tensor, expert: Tensor, kept: Tensor) -> Tensor:
        """The combine rule: (T, K) weights from the chosen experts' probabilities (Eq. 1) or scores."""
        combine = self.config.combine
        if combine == "softmax_topk":
            # Disabled experts leave the softmax; where all are, the row would be NaN, and is set to 0 below.
            chosen = scores.gather(-1, expert).masked_fill(~kept & kept.any(-1, keepdim=True), -torch.inf)
            return chosen.softmax(dim=-1).masked_fill(~kept, 0.0)
        weight = probs.gather(-1, expert).masked_fill(~kept, 0.0)
        if combine == "renormalize_nonzero":
            zeros = self.layout.indices("zero")
            weight = weight.masked_fill((expert >= zeros.start) & (expert < zeros.stop), 0.0)
        if combine in ("renormalize", "renormalize_nonzero"):
            total = weight.sum(dim=-1, keepdim=True)
            weight = weight / torch.where(total > 0, total, 1.0)
        return weight


def _normalise(logits: Tensor) -> Tensor:
    """Divides by each token's unbiased standard deviation; equal logits, whose deviation is 0, stay as they are."""
    std = logits.std(dim=-1, keepdim=True)
    return logits / torch.where(std > 0, std, 1.0)
