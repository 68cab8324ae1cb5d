"""The model to convert: opened and compared with its configuration, no weights read yet."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import safe_open
from transformers.utils import CONFIG_NAME

from ..errors import ConversionError, DataError, first_line
from ..model import MoEPPConfig, load_config, released, released_config, shards
from ..model.released import Place

Format = Literal["moepp", "released"]
EXTRAS = "released_extras.safetensors"
"""What ours has no place for: tensors under their published names, and the published ``config.json`` as metadata."""
CONFIG_METADATA = "config"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""What may be converted, under the names of safetensors."""


class Spec(NamedTuple):
    """A tensor's dtype and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Move(NamedTuple):
    """One published tensor's way from one format to the other; a row is None where the tensor is not in a stack."""

    place: Place
    read: str
    read_row: int | None
    write: str
    write_row: int | None


@dataclass(frozen=True)
class Source:
    """A model's folder."""

    folder: Path
    format: Format
    config: MoEPPConfig
    moves: list[Move]
    tensors: dict[str, Spec]
    file_of: dict[str, Path]
    published_config: str | None
    """The text of the published ``config.json``, where it is known."""


def open_source(folder: Path, to: Format | None) -> Source:
    """Reads the configuration and the headers of all shards.

    Raises:
        ConversionError: it is in the format ``to`` already, cannot be expressed in the other, or its tensors are not
            those that its configuration describes; names every one.
        DataError: it is no model, or a file is missing or damaged.
    """
    config = load_config(folder)
    file = folder / CONFIG_NAME
    form: Format = "released" if released_config.is_published(shards.read_json(file)) else "moepp"
    if to == form:
        raise ConversionError(f"{folder} is in the format {to!r} already; copy it, or convert it --to the other one")
    if form == "moepp":
        released_config.to_published(config)
    files = shards.weight_files(folder)
    extras = folder / EXTRAS
    if form == "moepp" and extras.is_file():
        files.append(extras)
    tensors, file_of = _headers(files)
    published_config = file.read_text(encoding="utf-8") if form == "released" else _kept_config(extras, config)
    moves = [_move(place, form) for place in released.places(config)]
    source = Source(folder, form, config, moves, tensors, file_of, published_config)
    _require_match(source)
    return source


def _move(place: Place, source: Format) -> Move:
    ours = (place.ours or place.published, place.row)
    published = (place.published, None)
    return Move(place, *published, *ours) if source == "released" else Move(place, *ours, *published)


def _headers(files: list[Path]) -> tuple[dict[str, Spec], dict[str, Path]]:
    tensors: dict[str, Spec] = {}
    file_of: dict[str, Path] = {}
    for file in files:
        for key, tensor in shards.read_shard(file).items():
            if key in tensors:
                raise ConversionError(f"{key} is both in {file_of[key]} and in {file}; remove one of the two")
            if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
                raise ConversionError(
                    f"{key} in {file} is {tensor.dtype} ({tensor.layout}); only floating-point weights are converted"
                )
            tensors[key], file_of[key] = Spec(tensor.dtype, tuple(tensor.shape)), file
    return tensors, file_of


def _require_match(source: Source) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    optional: set[str] = set()
    dtypes: dict[str, set[torch.dtype]] = {}
    for move in source.moves:
        # The last row of a stack says how many there are.
        stacked = () if move.read_row is None else (move.read_row + 1,)
        expected[move.read] = (*stacked, *move.place.shape)
        if move.place.optional or (source.format == "moepp" and move.place.ours is None):
            optional.add(move.read)
        if move.read in source.tensors:
            dtypes.setdefault(move.write, set()).add(source.tensors[move.read].dtype)
    found = {key: spec.shape for key, spec in source.tensors.items()}
    released.require_match(source.folder, found, expected, optional)
    if mixed := [key for key, kinds in dtypes.items() if len(kinds) > 1]:
        raise ConversionError(
            f"{source.folder}: the experts to be stacked in {', '.join(mixed)} differ in dtype; save them in one"
        )


def _kept_config(extras: Path, config: MoEPPConfig) -> str | None:
    """The published configuration that was kept, once it is known that the model can be written with it."""
    if not extras.is_file():
        return None
    with safe_open(extras, framework="pt") as file:
        text = (file.metadata() or {}).get(CONFIG_METADATA)
    if not text:
        return None
    try:
        kept = json.loads(text)
        if not released_config.is_published(kept):
            raise ConversionError(f"it is no configuration of a {released_config.MODEL_TYPE!r} model")
        released_config.to_published(config, kept)
    except ValueError as error:
        raise DataError(
            f"the config.json kept in {extras} is damaged: {first_line(error)}; convert the published model again"
        ) from error
    return text
