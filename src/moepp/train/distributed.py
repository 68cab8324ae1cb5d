"""A model over several processes: the one file that touches ``transformers.distributed``.

Inside functions that one process alone never calls: older versions, on which it trains as well, have less of it.
"""

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import transformers
from packaging.version import Version
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..errors import BackendUnavailable
from ..model import MoEPPConfig, MoEPPForCausalLM
from .layout import Layout
from .ranks import agreed, exchange, job, rank, world_size

Made = TypeVar("Made")
_ENGINE = Version("5.23")


def build_model(config: MoEPPConfig, layout: Layout, *, device: torch.device | str) -> MoEPPForCausalLM:
    """A model whose parameters have memory for this process's shards, and no values yet.

    Args:
        device: where the shards lie; ``"meta"`` for a model that is only looked at.
    """
    with torch.device("meta"):
        model = MoEPPForCausalLM(copy.deepcopy(config))  # transformers notes the sizes in it
    model = distribute(model, layout)
    if torch.device(device).type != "meta":
        model.to_empty(device=device)
        model.tie_weights()  # to_empty gives tied parameters memory of their own
    return model


def distribute(model: MoEPPForCausalLM, layout: Layout) -> MoEPPForCausalLM:
    """Shards a model's parameters in place; on one process it stays as it is."""
    if layout.world_size == 1:
        return model
    if Version(transformers.__version__) < _ENGINE:
        raise BackendUnavailable(
            f"several processes need transformers {_ENGINE} or newer, and {transformers.__version__} is installed; "
            "upgrade it, or train on one process"
        )
    from transformers.distributed.configuration_utils import DistributedConfig

    # It tells, in every process, that tensors on two-dimensional meshes take two collectives; there is no other way.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    engine, _, mesh = model.prepare_distribute_model(
        DistributedConfig(
            dp_replicate_size=layout.replicate_size, fsdp_size=layout.fsdp_size, ep_size=layout.ep_size, tp_size=1
        )
    )
    return model.maybe_distribute_model(model, engine, mesh)


def reshard(model: nn.Module) -> None:
    """Frees what a forward pass without a backward pass leaves gathered: to checkpoints, it is not the parameters."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a parameter, or all of a tensor that has none."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_shard(parameter: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    """This process's part of a parameter, and the same part of a tensor of its whole shape."""
    if not isinstance(parameter, DTensor):
        return parameter, full
    from transformers.distributed.sharding_utils import DtensorShardOperation

    local = parameter.to_local()
    shard = DtensorShardOperation(parameter).shard_tensor(full)
    assert shard is not None
    return local, shard.reshape(local.shape)


def contiguous_shards(state: Mapping[str, Any], like: Mapping[str, Any] | None = None) -> Any:
    """A state whose shards torch.distributed.checkpoint can describe, or with ``like`` the way back."""
    from transformers.distributed.checkpoint import _redistribute_state_dict

    return _redistribute_state_dict(state, like)  # pyright: ignore[reportArgumentType]


def total(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over all processes, in one exchange of float64; on one process the tensors as they are."""
    if not _several():
        return list(tensors)
    flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(like.shape).to(like.dtype) for part, like in zip(parts, tensors, strict=True)]


def stacked(tensor: Tensor) -> Tensor:
    """(processes, …) every process's tensor, in the order of their ranks."""
    if not _several():
        return tensor.unsqueeze(0)
    every = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(every, tensor)
    return torch.stack(every)


def from_first(what: str, make: Callable[[], Made]) -> Made:
    """What ``make`` returns on the first process, on all of them; see :func:`.ranks.agreed`."""
    box: list[Any] = [agreed(what, lambda: make() if rank() == 0 else None)]
    if _several():
        dist.broadcast_object_list(box)
    return box[0]


def gathered(value: Made) -> list[Made]:
    """Every process's value, in the order of their ranks."""
    if not _several():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_all(what: str) -> None:
    """Returns once every process has come here; ``what`` it did before, for a message about one that has not.

    Not a barrier of gloo's, which the first process to leave may break for the others by ending.
    """
    if (here := job()) is not None:
        exchange(dataclasses.replace(here, timeout=timedelta.max), what, "")  # the watchdog looks after it


def _several() -> bool:
    return world_size() > 1


def full_state(model: MoEPPForCausalLM) -> dict[str, Tensor]:
    """All weights whole and in CPU memory, on the first process; empty on the others, which must call this too."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if not _several():
        return dict(model.state_dict())
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(model, options=options))
