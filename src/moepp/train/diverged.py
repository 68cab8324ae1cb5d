"""Where a loss that is not finite began."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MoEPPError
from . import checkpoint
from .distributed import gathered, local


class TrainingDiverged(MoEPPError):
    """A loss, gradient or weight is not finite; training stopped before it reached a checkpoint."""


def diagnose(model: nn.Module, batches: list[dict[str, Tensor]], step: int, run: Path) -> TrainingDiverged:
    """Runs the step's batches again to find the first place that is not finite; all processes must take part."""
    where = bad_weights(model) or _anywhere(_bad_activation(model, batches)) or _anywhere(_bad_gradient(model, batches))
    return TrainingDiverged(
        f"training diverged at step {step}: what is not finite begins in {where or 'the loss'}; "
        f"{checkpoint.way_on(run)}; "
        "lower optimization.learning_rate or max_grad_norm, or look at the data of this step"
    )


def _anywhere(found: str | None) -> str | None:
    """What the first of the processes that found something found."""
    return next((text for text in gathered(found) if text), None)


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        value = local(value)
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, list | tuple):
        return all(_finite(item) for item in value)
    if isinstance(value, Mapping):
        return all(_finite(item) for item in value.values())
    return True


def bad_weights(model: nn.Module) -> str | None:
    """The first weights that are not finite on any process, in words; None if all are. All processes must call this."""
    bad = (f"the weights of {name}" for name, p in model.named_parameters() if not _finite(p))
    return _anywhere(next(bad, None))


def _bad_activation(model: nn.Module, batches: list[dict[str, Tensor]]) -> str | None:
    """The first module whose output is not finite though its parts' are: modules finish innermost first."""
    found: list[str] = []
    hooks = [
        module.register_forward_hook(
            lambda module, args, output, name=name: found.append(name) if not found and not _finite(output) else None
        )
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return f"the output of {found[0]}" if found else None


def _bad_gradient(model: nn.Module, batches: list[dict[str, Tensor]]) -> str | None:
    """The last parameter in forward order without a finite gradient: backward, it was reached first."""
    model.zero_grad()
    for batch in batches:
        model(**batch).loss.backward()
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return f"the gradient of {bad[-1]}" if bad else None
