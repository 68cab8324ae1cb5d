"""Expert parallelism in which zero-computation experts stay home: only (token, FFN expert) pairs travel.

Each rank of a group owns N/R whole FFN experts and has tokens of its own. A token is sent once for every FFN expert
that it chose and that has room for it; pairs with zero-computation experts, and those dropped for capacity, are neither
counted nor sent. Routing weights stay on the sender, which sums a token's results as :func:`moepp.expert_ffn` does, in
float32. What is around the exchange (meshes, sharding, the experts' new ``forward``) is ``transformers.distributed``'s;
importing this file registers :data:`NAME` there.

T tokens, D hidden, N FFN experts, K top-k, R ranks of the group, P pairs that a rank sends, Q rows that it receives.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers.distributed.expert_parallel import EPImplementation, EPImplementationInterface

from ..errors import ConfigError
from ..layers import FFNExperts

NAME = "moepp"
"""What ``DistributedConfig.ep_implementation`` calls it; in our models ``"auto"`` means it."""


class FFNPairsEP(EPImplementation):
    """Sends FFN pairs to the ranks of their experts, and the results back.

    All ranks of the group must call it equally often, with 0 tokens, too: a forward takes part in three all-to-alls
    (counts, tokens, results), a backward in two. Experts that receive nothing still get gradients, of 0, because the
    ranks that share them under FSDP wait for each other's.
    """

    def __init__(self, experts: nn.Module, ep_mesh: Any, tp_mesh: Any) -> None:
        """As transformers builds it.

        Raises:
            ConfigError: tensor-parallel ranks, which have the same tokens and would each send them.
        """
        if tp_mesh.size() > 1:
            raise ConfigError(
                f"distributed.tp_size={tp_mesh.size()} does not go with ep_implementation={NAME!r}, for which every "
                "rank has tokens of its own; set it to 1, or name another implementation, such as 'all_to_all'"
            )
        super().__init__(experts, ep_mesh, tp_mesh)
        self.experts: Any = experts

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(T, D) in the tokens' dtype: each token's weighted sum over its FFN experts, wherever these are.

        Args:
            hidden_states: (T, D) this rank's tokens; T may differ between ranks.
            top_k_index: (T, K) ids of all ranks' experts; those outside ``[0, N)`` contribute nothing.
            top_k_weights: (T, K).
        """
        group, ranks = self.ep_mesh.get_group(), self.ep_mesh.size()
        own: Any = self.num_local_experts
        number, top_k, device = own * ranks, top_k_index.shape[1], top_k_index.device

        flat = top_k_index.flatten()
        expert, order = torch.where((flat >= 0) & (flat < number), flat, number).sort(stable=True)
        bounds = torch.searchsorted(expert, torch.arange(number + 1, dtype=expert.dtype, device=device))
        counts = bounds.diff().view(ranks, own)  # pairs for each rank's experts
        received = torch.empty_like(counts)  # pairs of each rank for this one's experts
        dist.all_to_all_single(received, counts, group=group)
        send, receive = torch.stack([counts.sum(1), received.sum(1)]).tolist()  # the one wait for the device
        pair = order[: sum(send)]
        token = pair // top_k
        self.experts.rows_computed = sum(receive)

        rows = _Exchange.apply(hidden_states.index_select(0, token), send, receive, group)
        local = torch.arange(own, device=device).repeat(ranks)
        local = local.repeat_interleave(received.flatten(), output_size=sum(receive)).unsqueeze(-1)
        exact = torch.promote_types(hidden_states.dtype, torch.float32)
        results = self.experts_forward(rows, local, torch.ones(local.shape, dtype=exact, device=device))
        results = _Exchange.apply(results, receive, send, group)

        weighted = results.to(exact) * top_k_weights.flatten()[pair].unsqueeze(-1)
        return weighted.new_zeros(hidden_states.shape).index_add(0, token, weighted).to(hidden_states.dtype)


class _Exchange(Function):
    """All-to-all of rows that lie in the order of the ranks they go to; they come in the order of the senders."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.reverse = receive, send, group
        return _exchange(rows, send, receive, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _exchange(grads[0], *ctx.reverse), None, None, None


def _exchange(rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    came = rows.new_empty(sum(receive), rows.shape[1])
    dist.all_to_all_single(came, rows.contiguous(), receive, send, group=group)
    return came


def rows_computed(model: nn.Module) -> list[int]:
    """For each layer, the rows that this rank's FFN experts computed in its last forward, whichever ranks sent them.

    Empty without expert parallelism. A number is set by each forward, not added to, so that a forward which activation
    checkpointing repeats counts once; where micro-batches accumulate, read it after each.
    """
    experts = [module for module in model.modules() if isinstance(module, FFNExperts)]
    return [module.rows_computed for module in experts if module.rows_computed is not None]


EPImplementationInterface.register(NAME, FFNPairsEP)
