"""Packed copies of weights, kept as long as the weights live and do not change.

A changed weight shows in its version counter, which every in-place operation raises, or in its address. Writing through
``weight.data``, as some adapters' merging does, shows in neither, so a few elements of each expert are remembered too:
what changes all of an expert is seen, what changes a few of its rows may not be; :func:`forget` helps then.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

P = TypeVar("P")
_SAMPLES = 64


class _Entry(NamedTuple):
    state: tuple[Any, ...]
    aliases: tuple[Tensor, Tensor]
    """A few elements of each weight, where they are."""
    samples: tuple[Tensor, Tensor]
    """What they were."""
    packed: Any


_cache: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By gate_up."""


def of(gate_up: Tensor, down: Tensor, dtype: torch.dtype, pack: Callable[[], P]) -> P:
    """What ``pack()`` made of these weights as they are now; packs when there is nothing, or something outdated."""
    state = (dtype, gate_up._version, gate_up.data_ptr(), down._version, down.data_ptr())
    entry = _cache.get(gate_up)
    if entry is None or entry.state != state or not all(map(torch.equal, entry.aliases, entry.samples)):
        entry = None
        forget(gate_up)  # before packing: never three copies
        aliases = _some(gate_up), _some(down)
        entry = _Entry(state, aliases, (aliases[0].clone(), aliases[1].clone()), pack())
        _cache[gate_up] = entry
    return entry.packed


def forget(gate_up: Tensor) -> None:
    """Frees the packed copy of these weights."""
    _cache.pop(gate_up, None)


def _some(weight: Tensor) -> Tensor:
    """A few elements on each expert's diagonal, as integers: NaN equals itself there."""
    experts, rows, columns = weight.shape
    count = max(1, _SAMPLES // max(experts, 1))
    apart, row, column = weight.stride()
    step = rows // count * row + columns // count * column
    alias = weight.detach().as_strided((experts, count), (apart, step), weight.storage_offset())
    return alias.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()])
