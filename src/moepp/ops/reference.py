"""The ground truth: one expert after the other, on any dtype and device.

T tokens, D hidden, F intermediate, N FFN experts, K top-k.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend
from .dense import DenseTerm


def reference_ffn(
    x: Tensor, expert: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, _: DenseTerm | None = None
) -> Tensor:
    """See :func:`moepp.ops.expert_ffn`."""
    accumulator = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    # unbind once: indexing the stacked parameter per expert would make autograd build a full-size gradient for each.
    for index, (gate_up_e, down_e) in enumerate(zip(gate_up.unbind(0), down.unbind(0), strict=True)):
        token, slot = (expert == index).nonzero(as_tuple=True)
        gate, up = F.linear(x[token], gate_up_e).chunk(2, dim=-1)
        out = F.linear(F.silu(gate) * up, down_e)
        accumulator = accumulator.index_add(0, token, out.to(accumulator.dtype) * weight[token, slot, None])
    return accumulator.to(x.dtype)


BACKEND = Backend("reference", reference_ffn, lambda *_: None)
