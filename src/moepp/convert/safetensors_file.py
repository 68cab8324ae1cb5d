"""A safetensors file whose tensors, and rows of stacked ones, are written as they come, each to its own place.

Where a tensor lies follows from the shapes alone, so nothing waits in memory for its neighbours.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .source import DTYPES, Spec


class SafetensorsFile:
    """The file at its full size; what is never written is 0.

    Args:
        path: of a new file.
        tensors: what it will hold.
        metadata: text, kept in the header.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
        # Wider numbers first, as the format's own library does: then each lies at a multiple of its width.
        names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
        header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
        self._tensors = tensors
        self._offset: dict[str, int] = {}
        end = 0
        for name in names:
            spec = tensors[name]
            self._offset[name], end = end, end + spec.nbytes
            offsets = [self._offset[name], end]
            header[name] = {"dtype": DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._start + end)

    def write(self, name: str, row: int | None, tensor: Tensor) -> None:
        """Writes a tensor, or one row of a stacked one."""
        spec = self._tensors[name]
        assert tensor.dtype == spec.dtype
        assert tuple(tensor.shape) == (spec.shape if row is None else spec.shape[1:])
        data = tensor.contiguous().flatten().view(torch.uint8).numpy()
        self._file.seek(self._start + self._offset[name] + (row or 0) * data.nbytes)
        self._file.write(data.data)

    def close(self) -> None:
        self._file.close()
