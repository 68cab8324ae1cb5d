"""The loss on held-out text, the same on any number of processes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ..data import ValidationData
from .distributed import total
from .layout import Layout


def mean_loss(
    data: ValidationData, loss_of: Callable[[dict[str, Tensor]], Tensor], *, batch_size: int, layout: Layout
) -> float:
    """Nats per token over all samples, which have the same length each.

    Every process takes every so-manieth batch. Forward passes of sharded models are everybody's, so those that are left
    without one at the end compute a sample that does not count.
    """
    nats, samples = torch.zeros(2, dtype=torch.float64).unbind()
    for first in range(0, len(data), batch_size * layout.world_size):
        begin = first + layout.rank * batch_size
        mine = range(begin, min(begin + batch_size, len(data)))
        loss = loss_of(default_collate([data[index] for index in mine or [0]]))
        nats, samples = nats + len(mine) * loss.double(), samples + len(mine)
    nats, samples = total([nats, samples.to(nats.device)])
    return nats.item() / samples.item()
