"""The files of a checkpoint's weights: which there are, and one of them as tensors that are read when they are used."""

import json
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from ..errors import DataError, first_line

# In the order in which transformers looks for them.
_WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
_DAMAGED = "it is damaged; copy or download it again"
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
    *(ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, ImportError),
)
"""What transformers, torch, pickle and safetensors raise for files that hold something else than they should."""


def read_json(file: Path, remedy: str = _DAMAGED) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not JSON: {first_line(error)}; {remedy}") from error


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights, each once, sorted.

    Raises:
        DataError: there are none, or the index is damaged or names a file that is not in the folder.
    """
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise DataError(
            f"{folder} holds no weights, neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}, nor an index; "
            "a training run writes them at its end"
        )
    if found.suffix != ".json":
        return [found]
    index = read_json(found)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise DataError(f"{found} has no weight_map from weights to files: {_DAMAGED}")
    names = sorted(set(weight_map.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise DataError(f"{found} points to {', '.join(outside)}, outside its folder: {_DAMAGED}")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise DataError(f"{found} points to {', '.join(missing)}, which does not exist; download that file again")
    return [folder / name for name in names]


def read_shard(file: Path) -> dict[str, Tensor]:
    """A file's tensors, mapped into memory: bytes are read where they are used, and let go with the last tensor.

    Pickles may hold tensors and nothing that runs. Those of torch before 1.6 cannot be mapped and are read whole.

    Raises:
        DataError: the file is damaged, holds something else than named tensors, or asks to run code.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no dict
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UNREADABLE as error:
        if isinstance(error, pickle.UnpicklingError) and (asked := re.search(r"GLOBAL (\S+)", str(error))):
            raise DataError(
                f"{file} asks to run {asked[1]}, which a checkpoint has no need for; nothing was run, and it is refused"
            ) from error
        reason = first_line(error).split(". ")[0] or type(error).__name__
        raise DataError(f"{file} cannot be read ({reason}): {_DAMAGED}") from error
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise DataError(f"{file} holds something else than named tensors; give a file of weights")
    return {str(key): value.detach() for key, value in held.items()}


def damaged_record(file: Path) -> str | None:
    """Reads a pickle's every byte and compares its checksums; what does not match, if anything.

    torch does not look at them. safetensors, and pickles of torch before 1.6, have none.
    """
    if file.suffix == ".safetensors":
        return None
    try:
        if not zipfile.is_zipfile(file):
            return None
        with zipfile.ZipFile(file) as archive:
            return archive.testzip()
    except (*UNREADABLE, zlib.error) as error:
        return first_line(error)
