"""Memory for the gradients of weights, used again as soon as nobody holds it any more.

On a CPU, large memory comes fresh from the system each time and costs a page fault every 4 KiB: writing the gradients
of a layer's experts takes three times as long as it should (measured: 57 ms instead of 17 for 100 MB). A training step
that frees its gradients and makes them again gets the same memory again here.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By weight: the storage of a gradient made for it, which dies with the weight."""


def gradient_memory(weight: Tensor) -> Tensor:
    """Uninitialised contiguous memory of the weight's shape and dtype that no other tensor shares."""
    storage = _kept.pop(weight, None)  # taken out: another thread must not find it free, too
    if storage is None or storage.nbytes() != weight.numel() * weight.element_size() or storage.is_shared():
        storage = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device).untyped_storage()
    elif torch._C._storage_Use_Count(storage._cdata) > 1:
        # While micro-batches accumulate, the kept one is the gradient: a second one would be kept for nothing.
        _kept[weight] = storage
        return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    strides = torch.empty(weight.shape, device="meta").stride()
    memory = torch.empty(0, dtype=weight.dtype, device=weight.device).set_(storage, 0, weight.shape, strides)
    _kept[weight] = storage
    return memory


def forget(weight: Tensor) -> None:
    """Frees what is kept for this weight."""
    _kept.pop(weight, None)
