"""The experts that compute: N SwiGLU feed-forward networks with stacked weights.

Shared experts, which every token goes through with weight 1, sum to one network as wide as all of them: its rows of
gate and up are theirs one after the other, and so are its columns of down. That is how they are stored and run.

T tokens, D hidden, F intermediate, N FFN experts, K top-k.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..config import MoEConfig
from ..errors import BackendUnavailable
from ..ops import (
    DenseTerm,
    Packed,
    autocasted,
    check_backend,
    expert_ffn,
    pack_weights,
    packed_ffn,
    release,
)
from .routing import INIT_STD


class FFNExperts(nn.Module):
    """``gate_up_proj (N, 2F, D)``, ``down_proj (N, D, F)``; the signature of any transformers experts module.

    Args:
        backend: see :func:`moepp.expert_ffn`.
        shared: these are the layer's ``num_shared_experts``, as one expert of that many times the width.
    """

    def __init__(self, config: MoEConfig, *, backend: str = "auto", shared: bool = False) -> None:
        super().__init__()
        check_backend(backend)
        self.num_experts = 1 if shared else config.num_ffn_experts
        self.backend = backend
        self.packed: Packed | None = None
        self.rows_computed: int | None = None  # see moepp.model.expert_parallel
        hidden = config.hidden_size
        inner = config.intermediate_size * (config.num_shared_experts if shared else 1)
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, hidden, inner))
        self.reset_parameters()

    def reset_parameters(self, std: float = INIT_STD) -> None:
        """Draws both projections from N(0, std²)."""
        nn.init.normal_(self.gate_up_proj, std=std)
        nn.init.normal_(self.down_proj, std=std)

    @property
    def kernel(self) -> str:
        """The name of the backend that runs."""
        return self.backend

    def forward(
        self,
        x: Float[Tensor, "T D"],
        expert: Int[Tensor, "T K"],
        weight: Float[Tensor, "T K"],
        dense: DenseTerm | None = None,
    ) -> Float[Tensor, "T D"]:
        """The FFN experts' share of Eq. 1, plus ``dense``; ids outside ``[0, N)`` contribute and cost nothing."""
        return self.run(x, expert, weight, dense, backend=self.backend)

    def run(self, x: Tensor, expert: Tensor, weight: Tensor, dense: DenseTerm | None = None, *, backend: str) -> Tensor:
        """:meth:`forward` with the backend given."""
        if self.packed is None:
            return expert_ffn(x, expert, weight, self.gate_up_proj, self.down_proj, dense=dense, backend=backend)
        if backend not in ("auto", "onednn"):
            raise BackendUnavailable(f"backend={backend!r} cannot run packed experts; call unpack() first")
        if is_parametrized(self):
            raise BackendUnavailable(
                "packed experts do not see adapters of their weights; call unpack(), or merge them"
            )
        return packed_ffn(autocasted(x), expert, weight, self.packed, dense)

    def pack_for_inference(self) -> None:
        """Keeps the weights in oneDNN's order only, which the fastest CPU backend reads: no second copy of them.

        The parameters stay, without memory, until :meth:`unpack`, which moving or converting the module calls;
        ``state_dict`` still gives the weights.

        Raises:
            BackendUnavailable: the weights cannot be packed here; says why.
        """
        if self.packed is None:
            self.packed = pack_weights(self.gate_up_proj, self.down_proj)
            release(self.gate_up_proj, self.down_proj)
            for weight in (self.gate_up_proj, self.down_proj):
                weight.data = weight.new_full((), torch.nan).expand(weight.shape)

    def unpack(self) -> None:
        """Gives the parameters their memory back."""
        if self.packed is not None:
            self.gate_up_proj.data, self.down_proj.data = self.packed.unpack()
            self.packed = None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            destination[prefix + "gate_up_proj"], destination[prefix + "down_proj"] = self.packed.unpack()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        self.unpack()
        release(self.gate_up_proj, self.down_proj)
        return super()._apply(fn, recurse)
