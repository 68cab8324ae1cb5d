"""One MoE layer with zero-computation experts; its forward reads like Eq. 1.

T tokens (all leading dimensions flattened), D hidden, E all experts, K top-k.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..config import MoEConfig
from ..ops import add_dense, autocasted, without_autocast
from .capacity import apply_keep, keep_mask
from .ffn_experts import FFNExperts
from .quantized_experts import QuantizedExperts
from .routing import Matrix, Router, Routing
from .zero_experts import ZeroComputationExperts

Edit = Callable[[Routing], Routing]


class MoE(nn.Module):
    """Router, FFN experts and zero-computation experts: y = Σ_i g_i E_i(x), plus S(x) of shared experts if it has any.

    Args:
        config: what the layer is made of.
        first: whether this is the model's first MoE layer, whose router has nothing to remember.
        backend: which kernel runs the FFN experts, see :func:`moepp.expert_ffn`.
        experts: a module to run the FFN experts instead of :class:`FFNExperts`, with the same parameters and signature.
        shared_experts: the same for the shared ones.
    """

    def __init__(
        self,
        config: MoEConfig,
        *,
        first: bool = False,
        backend: str = "auto",
        experts: nn.Module | None = None,
        shared_experts: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.router = Router(config, first=first)
        self.experts = FFNExperts(config, backend=backend) if experts is None else experts
        self.zero_computation = ZeroComputationExperts(config)
        self.shared_experts = shared_experts
        if shared_experts is None and config.num_shared_experts:
            self.shared_experts = FFNExperts(config, backend=backend, shared=True)

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
        projected, mix_logits = self._project(tokens)
        routing = self.router(
            tokens, previous, selection_bias=selection_bias, projected=projected, backend=self._backend
        )
        if edit is not None:
            routing = edit(routing)._replace(logits=routing.logits)
        mask = None if mask is None else mask.reshape(-1)
        routing = self._apply_capacity(routing, mask)
        return self.apply_experts(tokens, routing, mix_logits, mask=mask).view_as(x), routing

    def apply_experts(
        self,
        tokens: Float[Tensor, "T D"],
        routing: Routing,
        mix_logits: Float[Tensor, "T two_C"] | None = None,
        *,
        mask: Bool[Tensor, "T"] | None = None,
    ) -> Float[Tensor, "T D"]:
        """All experts with the routing given: Eq. 1, plus the shared experts.

        Args:
            mix_logits: W_c x for the constant experts, where the caller has it already.
            mask: True for real tokens, which shared experts see; the others' routing must say itself that it is kept
                by no expert.
        """
        if self.shared_experts is None:
            return self._apply_routed(tokens, routing, mix_logits)
        shared = self.apply_shared(tokens, routing, mask)  # first: somebody else's experts may overwrite tokens
        return shared + self._apply_routed(tokens, routing, mix_logits)

    def apply_shared(
        self, tokens: Float[Tensor, "T D"], routing: Routing, mask: Bool[Tensor, "T"] | None = None
    ) -> Float[Tensor, "T D"]:
        """The shared experts alone, of a layer that has any; of the routing, only dtypes matter."""
        assert self.shared_experts is not None
        # One expert for every token, whatever capacity dropped; padding has an id that no expert has.
        expert = routing.expert.new_zeros(len(tokens), 1)
        if mask is not None:
            expert = expert.masked_fill(~mask.unsqueeze(-1), 1)
        scale = self.config.input_scale
        seen = autocasted(tokens if scale == 1.0 else tokens * scale)
        return self.shared_experts(seen, expert, routing.weight.new_ones(expert.shape))

    def _apply_routed(self, tokens: Tensor, routing: Routing, mix_logits: Tensor | None) -> Tensor:
        """Eq. 1: the FFN experts' share plus the zero-computation experts'."""
        layout = self.config.layout()
        scale = self.config.input_scale
        seen = tokens if scale == 1.0 else tokens * scale
        # A dropped assignment becomes an id that no expert has, so that it costs no matrix product.
        ffn_expert = routing.expert.masked_fill(~routing.kept, layout.num_experts)
        if not _skips_other_ids(self.experts):
            # Somebody else's in the place of ours, as vLLM's: they take their own ids alone, and may overwrite tokens.
            other = ffn_expert >= layout.ffn
            rest = self.zero_computation(seen, routing)
            return rest + self.experts(seen, ffn_expert.masked_fill(other, 0), routing.weight.masked_fill(other, 0.0))
        if not layout.num_zero_computation:
            return self.experts(autocasted(seen), ffn_expert, routing.weight)
        if not _bare(self.zero_computation, ZeroComputationExperts):
            return self.experts(autocasted(seen), ffn_expert, routing.weight) + self.zero_computation(seen, routing)
        if mix_logits is None:
            mix_logits = self.zero_computation.mix_logits(tokens)
        if mix_logits is not None and scale != 1.0:
            mix_logits = mix_logits * scale
        dense = self.zero_computation.term(routing, mix_logits)
        seen = autocasted(seen)  # as every backend does: what is around the experts, such as an exchange, sees the same
        if _bare(self.experts, FFNExperts):
            return self.experts(seen, ffn_expert, routing.weight, dense)
        return add_dense(self.experts(seen, ffn_expert, routing.weight), seen, dense)

    @property
    def _backend(self) -> str:
        """The experts', for what has kernels of its own to go with it."""
        return self.experts.kernel if isinstance(self.experts, FFNExperts) else "auto"

    def _project(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The router's rows and W_c's in one float32 product, which reads the tokens once.

        None where something is around one of them: then each computes its own.
        """
        if not (_bare(self.router, Router) and _bare(self.zero_computation, ZeroComputationExperts)):
            return None, None
        if self.router.hidden is not None and not _bare(self.router.hidden, Matrix):
            return None, None
        with without_autocast(x):
            rows = self.router.projection
            if self.zero_computation.mix is not None:
                rows = torch.cat([rows, self.zero_computation.mix.flatten(0, 1).to(rows)])
            exact = torch.promote_types(x.dtype, torch.float32)
            projected = F.linear(x.to(exact), rows.to(exact))
        if self.zero_computation.mix is None:
            return projected, None
        routing, mix = projected.tensor_split([len(self.router.projection)], dim=-1)
        return routing, mix

    def _apply_capacity(self, routing: Routing, mask: Tensor | None) -> Routing:
        factor = self.config.capacity_factor if self.training else self.config.eval_capacity_factor
        kept = routing.kept if mask is None else routing.kept & mask.unsqueeze(-1)
        if factor is not None:
            kept = keep_mask(routing, self.config, factor, mask=mask, backend=self._backend)
        return apply_keep(routing, kept)


def _bare(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether nothing was put around a part of the layer, so that its parameters may be read past its forward.

    Adapters wrap a part; offloading and parallel plans replace its ``forward``, and expect the arguments of
    transformers' experts there. Both are at work only while the part is called.
    """
    return isinstance(part, kind) and "forward" not in vars(part)


def _skips_other_ids(experts: nn.Module) -> bool:
    """Whether ids outside ``[0, N)`` contribute nothing and cost nothing: in our modules, wrapped or not."""
    ours = FFNExperts | QuantizedExperts
    return isinstance(experts, ours) or any(isinstance(part, ours) for part in experts.modules())
