"""A run's tensors in torch.distributed.checkpoint: saved by any number of processes, loaded by any other.

Each process writes the shards it holds, and reads the parts of saved shards that make up its own. Only tensors are in
there: rates, betas and decay are the recipe's. A process by itself is one process of a job.
"""

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from ..errors import DataError, first_line
from .group import Group

METADATA = ".metadata"
_MODEL, _OPTIMIZER = "model", "optimizer"
# Names instead of positions in groups: with other sharding, the groups may be others.
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_TENSORS = "state."
# It says so at every save and load of a single process, which is what we mean.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The tensors to save, of this process: they are the model's and the optimizer's own, not copies."""
    weights = get_model_state_dict(model)  # first: after an evaluation it makes FSDP put its shards back
    _, moments = _optimizer_state(model, optimizer)
    return {_MODEL: _contiguous(weights), _OPTIMIZER: _contiguous(moments)}


def write(state: dict[str, Any], folder: Path, group: Group) -> None:
    """Writes what :func:`state_of` gave, or a copy of it: each process a file, and rank 0 the index of all.

    Raises:
        CheckpointException: on all ranks, with what went wrong on some.
    """
    save(state, storage_writer=_Writer(folder), process_group=group.group, no_dist=group.size == 1)


def files_of(folder: Path, rank: int) -> list[Path]:
    """The files that a rank wrote."""
    return sorted(folder.glob(f"__{rank}_*.distcp"))


def load_model(model: nn.Module, folder: Path) -> None:
    """Sets a model's weights, wherever its shards lie."""
    own = get_model_state_dict(model)
    state = {_MODEL: _contiguous(own)}
    _read(state, folder)
    set_model_state_dict(model, _contiguous(state[_MODEL], own))


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Sets the optimizer's moments and step counts; its rates and betas stay as they are."""
    settings, own = _optimizer_state(model, optimizer)
    state = {_OPTIMIZER: _contiguous(own)}
    _read(state, folder)
    set_optimizer_state_dict(model, optimizer, settings | _contiguous(state[_OPTIMIZER], own), options=_FLAT)


def weights(folder: Path) -> dict[str, TensorStorageMetadata]:
    """The model's saved tensors by name: their sizes and dtypes, from the index alone."""
    saved = _Reader(folder).read_metadata().state_dict_metadata
    start = f"{_MODEL}."
    return {
        name.removeprefix(start): cast(TensorStorageMetadata, kind)
        for name, kind in saved.items()
        if name.startswith(start)
    }


def read_weights(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Some of the model's tensors, whole, in this process alone."""
    kinds = weights(folder)
    state = {_MODEL: {name: torch.empty(kinds[name].size, dtype=kinds[name].properties.dtype) for name in names}}
    load(state, storage_reader=_Reader(folder), no_dist=True)
    return state[_MODEL]


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_FLAT)
    moments = {name: value for name, value in state.items() if name.startswith(_TENSORS)}
    return {name: value for name, value in state.items() if name not in moments}, moments


def _read(state: dict[str, Any], folder: Path) -> None:
    try:
        load(state, storage_reader=_Reader(folder))
    except CheckpointException as error:  # no Exception, but torch's own kind of failure on some ranks
        reason = next(first_line(met) for met, _ in error.failures.values())
        raise DataError(f"checkpoint {folder} cannot be read: {reason}; check the storage, and resume again") from error


def _contiguous(state: Mapping[str, Any], like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """FSDP over expert parallelism makes shards of several pieces, which the format has no words for.

    Args:
        like: goes back to shards like these.
    """
    if not any(isinstance(value, DTensor) for value in state.values()):
        return dict(state)
    from .distributed import contiguous_shards

    return contiguous_shards(state, like)


class _Writer(FileSystemWriter):
    """torch's, which hides what the system said of a failed write behind words of its own."""

    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().write_data(*args, **kwargs)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from error


class _Reader(FileSystemReader):
    """torch's, except that the index, which is a pickle, may hold descriptions of tensors and nothing that runs."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / METADATA).open("rb") as file:
            return _Index(file).load()


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _INDEX.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise DataError(
            f"the {METADATA} of a checkpoint asks to run {module}.{name}, which it has no need for; nothing was run, "
            "and it is refused"
        )


_INDEX = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),
}
"""Modules and the names in them that describe tensors and where they lie."""
