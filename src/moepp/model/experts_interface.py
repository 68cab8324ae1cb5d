"""``experts_implementation``: our kernels in transformers' models, and transformers' kernels in ours.

Any transformers MoE model whose experts are plain SwiGLU networks runs ours as ``moepp_auto``, ``moepp_reference``, …:
importing :mod:`moepp.model` registers one name per backend. :class:`moepp.model.MoEPPForCausalLM` knows them without
the prefix, too, and transformers' own implementations besides.

T tokens, D hidden, F intermediate, N FFN experts, K top-k.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, ExpertsInterface, _default_apply_gate

from ..errors import BackendUnavailable
from ..layers import FFNExperts
from ..ops import BACKENDS, DenseTerm, add_dense, expert_ffn

PREFIX = "moepp_"
SILU = (nn.SiLU, type(ACT2FN["silu"]))
STOCK = dict(ExpertsInterface._global_mapping)


def why_not(experts: nn.Module) -> str | None:
    """What about a transformers experts module is unlike our kernels' SwiGLU networks; None if nothing is."""
    if not getattr(experts, "has_gate", True):
        return "they have no gate"
    if getattr(experts, "has_bias", False):
        return "they have biases"
    if getattr(experts, "is_transposed", False):
        return "their weights are transposed"
    if not getattr(experts, "is_concatenated", True):
        return "their gate and up rows are interleaved"
    if getattr(experts, "has_post_expert_norm", False):
        return "a norm follows each expert"
    if getattr(type(experts), "_apply_gate", _default_apply_gate) is not _default_apply_gate:
        return "they gate in their own way"
    if not isinstance(experts.act_fn, SILU):
        return f"their activation is {type(experts.act_fn).__name__}, not SiLU"
    return None


def ours(backend: str) -> Callable[..., Tensor]:
    """An experts module's forward that runs this backend. Ids outside ``[0, N)``, as expert parallelism's, are skipped.

    Raises:
        BackendUnavailable: the experts are of another form.
    """

    def forward(
        self: Any,
        hidden_states: Tensor,
        top_k_index: Tensor,
        top_k_weights: Tensor,
        dense: DenseTerm | None = None,
    ) -> Tensor:
        if isinstance(self, FFNExperts):
            return self.run(hidden_states, top_k_index, top_k_weights, dense, backend=backend)
        if (reason := why_not(self)) is not None:
            raise BackendUnavailable(
                f"experts_implementation={PREFIX + backend!r} cannot run {type(self).__name__}: {reason}; "
                "use one of transformers' own, such as 'grouped_mm'"
            )
        # Some routers round their weights to the model's dtype; the sum over K is taken in the weights'.
        weight = top_k_weights.to(torch.promote_types(top_k_weights.dtype, torch.float32))
        return expert_ffn(hidden_states, top_k_index, weight, self.gate_up_proj, self.down_proj, backend=backend)

    return forward


def _compacted(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One of transformers' implementations, shown only (token, FFN expert) pairs: other ids would break it."""

    def forward(self: FFNExperts, x: Tensor, expert: Tensor, weight: Tensor, dense: DenseTerm | None = None) -> Tensor:
        if self.packed is not None:
            raise BackendUnavailable("transformers' implementations cannot run packed experts; call unpack() first")
        inside = (expert >= 0) & (expert < self.num_experts)
        if torch.compiler.is_compiling():
            # How many pairs there are is not known then: all are computed, and those of no FFN expert multiplied by 0.
            y = stock(self, x, torch.where(inside, expert, 0), torch.where(inside, weight, 0.0))
            return y if dense is None else add_dense(y, x, dense)
        token, slot = inside.nonzero(as_tuple=True)
        rows, ids, weights = x[token], expert[token, slot, None], weight[token, slot, None]
        if not token.numel():
            # They cannot take no rows, and the weights' gradients must be 0, not missing: one row, whose result is cut.
            rows, ids, weights = (part.sum(0, keepdim=True) for part in (rows, ids, weights))
        pairs = stock(self, rows, ids, weights)[: token.numel()]
        y = torch.zeros_like(x, dtype=weight.dtype).index_add(0, token, pairs.to(weight.dtype))
        return y.to(x.dtype) if dense is None else add_dense(y, x, dense)

    return forward


class MoEPPExpertsInterface(ExpertsInterface):
    """What ``experts_implementation`` may name in our own model."""

    _global_mapping = {  # noqa: RUF012 - transformers' own form
        **{name: ours(name) for name in BACKENDS},
        **{PREFIX + name: ours(name) for name in BACKENDS},
        **{name: _compacted(stock) for name, stock in STOCK.items()},
    }


EXPERTS = MoEPPExpertsInterface()

for _name in BACKENDS:
    ALL_EXPERTS_FUNCTIONS.register(PREFIX + _name, ours(_name))
