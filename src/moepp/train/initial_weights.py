"""A new run from saved weights instead of random ones."""

from pathlib import Path

import torch
from torch import nn

from ..errors import ConfigError, DataError
from ..model import MoEPPConfig, load_config, shards
from .distributed import local_shard

_FREE = frozenset(
    {
        *("max_position_embeddings", "use_cache", "attention_dropout", "initializer_range", "constant_init_std"),
        *("residual_init_std", "tau", "capacity_factor", "eval_capacity_factor", "drop_policy"),
        *("router_aux_loss_coef", "balance_scope"),
    }
)
"""Fields that say how to train and not what the weights mean."""


def check_initial_weights(folder: Path, config: MoEPPConfig) -> None:
    """Checks that weights were saved from the model that a recipe describes.

    Raises:
        ConfigError: names the first field in which the two differ.
        DataError: the folder holds no model of ours.
    """
    saved = load_config(folder)
    for name in (name for name in MoEPPConfig.__annotations__ if name not in _FREE):
        if getattr(config, name) != getattr(saved, name):
            raise ConfigError(
                f"model.{name}={getattr(config, name)!r} differs from {getattr(saved, name)!r}, the value of the "
                f"weights in initial_weights={str(folder)!r}; set the same, or start without them"
            )


@torch.no_grad()
def load_initial_weights(model: nn.Module, folder: Path) -> None:
    """Fills a model's parameters; where they are sharded, each process reads its own part of the files.

    Raises:
        DataError: a file is missing or damaged, or lacks a weight or has another.
    """
    missing = dict(model.named_parameters())
    tied = model.state_dict().keys() - missing
    for file in shards.weight_files(folder):
        for name, full in shards.read_shard(file).items():
            if name in tied:
                continue
            parameter = missing.pop(name, None)
            if parameter is None or parameter.shape != full.shape:
                raise DataError(f"{name} in {file} is not a weight of this model; give a folder that moepp train wrote")
            local, part = local_shard(parameter, full)
            local.copy_(part)
    if missing:
        raise DataError(f"{folder} lacks {', '.join(sorted(missing)[:3])}; save the model again")
