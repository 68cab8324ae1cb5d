"""Whole training runs of a tiny model over several processes, and what they leave to compare."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from moepp.train import load_recipe, train
from moepp.train.callbacks import StepClock

from ..train.tiny import at_step, logged, quiet, recipe_of, weights, write_recipe
from .processes import run_processes

Biases = list[list[float]]
SECONDS = 2.0
"""What every step takes, as far as a run's log knows."""


def train_on(
    world: int,
    texts: str,
    out: Path,
    *overrides: str,
    biases: Biases | None = None,
    timeout: float = 120.0,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains on so many processes; returns ``logs``, ``validation``, ``gradients`` of the first step and ``weights``.

    Args:
        biases: added to the scores of the router, by micro-batch: number m of a step takes biases[m % len(biases)].
    """
    path = write_recipe(out.with_suffix(".yaml"), parallel_recipe(texts, out))
    gradients = run_processes(world, _train, str(path), overrides, biases, resume, timeout=timeout)[0]
    validation = logged(out, "eval_loss")[-1]
    return {"logs": logged(out), "validation": validation, "gradients": gradients, "weights": weights(out)}


def parallel_recipe(texts: str, out: Path) -> dict[str, Any]:
    """Four micro-batches a step, which 1, 2 and 4 processes can share, and nothing that random numbers decide."""
    recipe = recipe_of(texts, out)
    recipe["model"] |= {"attention_dropout": 0.0, "num_ffn_experts": 4}
    recipe["optimization"] |= {"warmup_steps": 1, "max_grad_norm": 0.5}
    recipe["training"] |= {
        "max_steps": 3,
        "gradient_accumulation_steps": 4,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "eval_steps": 3,
    }
    return recipe


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered; every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _train(path: str, overrides: list[str], biases: Biases | None, resume: bool) -> dict[str, Tensor]:
    gradients: dict[str, Tensor] = {}

    def keep(seen: dict[str, Any]) -> None:
        for name, p in seen["model"].named_parameters():
            assert p.grad is not None, name
            gradients[name] = whole(p.grad).clone()

    def bias(seen: dict[str, Any]) -> None:
        assert biases is not None
        ranks, count = dist.get_world_size(), 0

        def choose(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            nonlocal count
            if not module.training:
                return args, kwargs
            number = count * ranks + dist.get_rank()
            count += 1
            return args, kwargs | {"selection_bias": torch.tensor(biases[number % len(biases)])}

        seen["model"].register_forward_pre_hook(choose, with_kwargs=True)

    with (
        at_step(0, keep, "on_pre_optimizer_step"),
        nullcontext() if biases is None else at_step(0, bias, "on_train_begin"),
        mock.patch.object(StepClock, "take", return_value=SECONDS),
    ):
        train(load_recipe(path, overrides), console=quiet(), resume=resume)
    return gradients
