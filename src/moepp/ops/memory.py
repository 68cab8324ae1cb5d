"""Memory for the gradients of weights, used again as soon as nobody holds it any more.

On a CPU, large memory comes fresh from the system each time and costs a page fault every 4 KiB: writing the gradients
of a layer's experts takes three times as long as it should (measured: 57 ms instead of 17 for 100 MB). A training step
that frees its gradients and makes them again gets the same memory again here.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By weight: the storage of the last gradient made for it, which dies with the weight."""


def gradient_memory(weight: Tensor) -> Tensor:
    """Uninitialised contiguous memory of the weight's shape and dtype that no other tensor shares."""
    storage = _kept.get(weight)
    size = weight.numel() * weight.element_size()
    if storage is None or storage.nbytes() != size or torch._C._storage_Use_Count(storage._cdata) > 1:
        storage = torch.empty(weight.shape, dtype=weight.dtype).untyped_storage()
        _kept[weight] = storage
    empty = torch.empty(0, dtype=weight.dtype)
    return empty.set_(storage, 0, weight.shape, torch.empty(weight.shape, device="meta").stride())
