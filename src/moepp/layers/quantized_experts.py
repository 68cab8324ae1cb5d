"""FFN experts whose weights are stored in 8 or 4 bits, for inference.

T tokens, D hidden, N FFN experts, K top-k.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..ops.quantized import Quantized, quantize, quantized_ffn
from .ffn_experts import FFNExperts


class QuantizedExperts(nn.Module):
    """In the place of :class:`FFNExperts`: buffers instead of parameters, the same signature.

    Args:
        experts: whose weights to quantise; they are not modified.
        scheme: ``"int8"`` or ``"int4"``.

    Raises:
        ConfigError: no such scheme, or it cannot store weights of this shape.
        BackendUnavailable: the weights are not on a CPU.
    """

    gate_up_proj: Tensor
    gate_up_proj_scale: Tensor
    down_proj: Tensor
    down_proj_scale: Tensor

    def __init__(self, experts: FFNExperts, scheme: str) -> None:
        super().__init__()
        self.num_experts = experts.num_experts
        self.scheme = scheme
        for name in ("gate_up_proj", "down_proj"):
            codes, scale = quantize(getattr(experts, name), scheme)
            self.register_buffer(name, codes)
            self.register_buffer(f"{name}_scale", scale)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        expert: Int[Tensor, "T K"],
        weight: Float[Tensor, "T K"],
    ) -> Float[Tensor, "T D"]:
        """See :meth:`FFNExperts.forward`; the layer adds its dense term itself."""
        gate_up = Quantized(self.gate_up_proj, self.gate_up_proj_scale)
        down = Quantized(self.down_proj, self.down_proj_scale)
        return quantized_ffn(x, expert, weight, gate_up, down, scheme=self.scheme)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, scheme={self.scheme!r}"
