"""The experts that compute: N SwiGLU feed-forward networks with stacked weights.

T tokens, D hidden, F intermediate, N FFN experts, K top-k.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config import MoEConfig
from ..ops import DenseTerm, check_backend, expert_ffn
from .routing import INIT_STD


class FFNExperts(nn.Module):
    """``gate_up_proj (N, 2F, D)``, ``down_proj (N, D, F)``; the signature of any transformers experts module."""

    def __init__(self, config: MoEConfig, *, backend: str = "auto") -> None:
        super().__init__()
        check_backend(backend)
        self.num_experts = config.num_ffn_experts
        self.backend = backend
        hidden, inner = config.hidden_size, config.intermediate_size
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
        return expert_ffn(x, expert, weight, self.gate_up_proj, self.down_proj, dense=dense, backend=self.backend)
