"""A model over several processes: the one file that touches ``transformers.distributed``."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.distributed.checkpoint import _redistribute_state_dict
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.distributed.sharding_utils import DtensorShardOperation

from ..model import MoEPPConfig, MoEPPForCausalLM
from .layout import Layout


def build_model(config: MoEPPConfig, layout: Layout, *, device: torch.device | str) -> MoEPPForCausalLM:
    """A model whose parameters have memory for this process's shards, and no values yet.

    Args:
        device: where the shards lie; ``"meta"`` for a model that is only looked at.
    """
    with torch.device("meta"):
        model = MoEPPForCausalLM(config)
    model = distribute(model, layout)
    if torch.device(device).type != "meta":
        model.to_empty(device=device)
        model.tie_weights()  # to_empty gives tied parameters memory of their own
    return model


def distribute(model: MoEPPForCausalLM, layout: Layout) -> MoEPPForCausalLM:
    """Shards a model's parameters in place; on one process it stays as it is."""
    if layout.world_size == 1:
        return model
    engine, _, mesh = model.prepare_distribute_model(
        DistributedConfig(
            dp_replicate_size=layout.replicate_size, fsdp_size=layout.fsdp_size, ep_size=layout.ep_size, tp_size=1
        )
    )
    return model.maybe_distribute_model(model, engine, mesh)


def local_shard(parameter: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    """This process's part of a parameter, and the same part of a tensor of its whole shape."""
    if not isinstance(parameter, DTensor):
        return parameter, full
    local = parameter.to_local()
    shard = DtensorShardOperation(parameter).shard_tensor(full)
    assert shard is not None
    return local, shard.reshape(local.shape)


def contiguous_shards(state: Mapping[str, Any], like: Mapping[str, Any] | None = None) -> Any:
    """A state whose shards torch.distributed.checkpoint can describe, or with ``like`` the way back."""
    return _redistribute_state_dict(state, like)


def total(tensors: list[Tensor]) -> list[Tensor]:
    """Sums over all processes, in one exchange of float64; on one process the tensors as they are."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensors
    flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(like.shape).to(like.dtype) for part, like in zip(parts, tensors, strict=True)]
