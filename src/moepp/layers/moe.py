"""One MoE layer with zero-computation experts; its forward reads like Eq. 1.

T tokens (all leading dimensions flattened), D hidden, E all experts, K top-k.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..config import MoEConfig
from .capacity import apply_keep, keep_mask
from .ffn_experts import FFNExperts
from .routing import Router, Routing
from .zero_experts import ZeroComputationExperts

Edit = Callable[[Routing], Routing]


class MoE(nn.Module):
    """Router, FFN experts and zero-computation experts: y = Σ_i g_i E_i(x).

    Args:
        config: what the layer is made of.
        first: whether this is the model's first MoE layer, whose router has nothing to remember.
        backend: which kernel runs the FFN experts, see :func:`moepp.expert_ffn`.
        experts: a module to run the FFN experts instead of :class:`FFNExperts`, with the same parameters and signature.
    """

    def __init__(
        self, config: MoEConfig, *, first: bool = False, backend: str = "auto", experts: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.router = Router(config, first=first)
        self.experts = FFNExperts(config, backend=backend) if experts is None else experts
        self.zero_computation = ZeroComputationExperts(config)

    def forward(
        self,
        x: Float[Tensor, "*B D"],
        previous: Float[Tensor, "T E"] | None = None,
        *,
        mask: Bool[Tensor, "..."] | None = None,
        selection_bias: Float[Tensor, "E"] | None = None,
        edit: Edit | None = None,
    ) -> tuple[Float[Tensor, "*B D"], Routing]:
        """Sends each token through its K experts.

        Args:
            x: hidden states.
            previous: the previous MoE layer's ``Routing.logits`` (Eq. 6).
            mask: True for real tokens, False for padding, which reaches no expert, takes no capacity and comes out 0;
                in the shape of x's leading dimensions, or flat.
            selection_bias: added to the scores for choosing only; ``-inf`` disables an expert.
            edit: for studies: a function of the routing, applied after selection and before capacity. The logits that
                the next layer receives are the router's, whatever it returns.

        Returns:
            The layer's output, to be added to the residual stream, and the routing it applied.
        """
        tokens = x.reshape(-1, x.shape[-1])
        routing = self.router(tokens, previous, selection_bias=selection_bias)
        if edit is not None:
            routing = edit(routing)._replace(logits=routing.logits)
        routing = self._apply_capacity(routing, None if mask is None else mask.reshape(-1))
        return self.apply_experts(tokens, routing).view_as(x), routing

    def apply_experts(self, tokens: Float[Tensor, "T D"], routing: Routing) -> Float[Tensor, "T D"]:
        """Eq. 1 with the routing given: the FFN experts' share plus the zero-computation experts'."""
        seen = tokens if self.config.input_scale == 1.0 else tokens * self.config.input_scale
        # A dropped assignment becomes an id that no expert has, so that it costs no matrix product.
        ffn_expert = routing.expert.masked_fill(~routing.kept, self.config.layout().num_experts)
        y = self.experts(seen, ffn_expert, routing.weight)
        if self.config.layout().num_zero_computation:
            y = y + self.zero_computation(seen, routing)
        return y

    def _apply_capacity(self, routing: Routing, mask: Tensor | None) -> Routing:
        factor = self.config.capacity_factor if self.training else self.config.eval_capacity_factor
        kept = routing.kept if mask is None else routing.kept & mask.unsqueeze(-1)
        if factor is not None:
            kept = keep_mask(routing, self.config, factor, mask=mask)
        return apply_keep(routing, kept)
