"""Autocast, for what decides on its precision itself."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on x's device; nothing where there is none, as entering one takes 10 µs."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def autocasted(x: Tensor) -> Tensor:
    """x in autocast's dtype where there is autocast, else as it is."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
