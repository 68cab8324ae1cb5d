"""What enters collectives, seen where torch hands them to the process group: nothing can pass beside it."""

from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Sent(NamedTuple):
    """What one rank gives to one all-to-all."""

    rows: int
    width: int
    dtype: torch.dtype
    to: tuple[int, ...]
    """Rows for each rank."""

    @property
    def bytes(self) -> int:
        return self.rows * self.width * self.dtype.itemsize


class Wire(TorchDispatchMode):
    """Records what this process gives to collectives, forward and backward, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []
        self.others: list[str] = []
        """Names of the collectives that were no all-to-all."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            if func.__name__.startswith("alltoall_base_"):
                _, given, _, _, split, *_ = args
                ranks = torch.distributed.get_world_size()
                to = tuple(split) or (len(given) // ranks,) * ranks
                self.sent.append(Sent(len(given), given.shape[-1], given.dtype, to))
                assert sum(to) == len(given)
            elif func.__name__ != "barrier.default":
                self.others.append(func.__name__)
        return func(*args, **(kwargs or {}))
