"""The published checkpoint to ours and back, shard by shard.

Both ways are the same copying: :func:`moepp.model.released.places` pairs each published tensor with one of ours, or
with a row of a stacked one; sizes are known from the shards' headers before a byte is written; then each source shard
is mapped, its tensors are written to their places, and it is let go. Bytes are copied as they are.

What has no place in ours (layer 0's unused ``gate_map``, the published ``config.json``) goes to :data:`EXTRAS`, and
comes back from there. Both formats are written as safetensors: the loader of transformers 4.40, which the published
model was written for, reads them too, and nobody needs another pickle.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from ..errors import DataError
from ..model import released_config, shards
from .folders import appearing, require_free
from .safetensors_file import SafetensorsFile
from .source import CONFIG_METADATA, EXTRAS, Format, Move, Source, Spec, open_source

REPORT = "conversion.json"
SHARD_BYTES = 2**30
# Tokenizers, generation settings and licences. Weights are converted, code and everything else stays behind.
CARRIED = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja"),
    *("generation_config.json", "LICENSE*", "NOTICE*", "README.md"),
)
Files = Mapping[str, Mapping[str, Spec]]
"""File -> tensor -> what it is."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a conversion did; :data:`REPORT` in the destination holds the same."""

    to: Format
    keys: list[dict[str, Any]]
    """Every tensor: its kind, names, row, shape, dtype, bytes and the file it was read from."""
    carried: list[str]
    """Files taken along as they are."""
    left: list[str]
    """Files that were not."""
    filled: list[str]
    """Tensors that the source lacks and nobody reads, written as zeros."""


def convert(
    folder: Path, destination: Path, to: Format | None = None, *, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Writes a model in the other format; the destination appears when it is complete.

    Args:
        folder: the published checkpoint, or a model of ours.
        destination: a folder that does not exist, or is empty.
        to: the format to write; by default the one that the model is not in.
        progress: called with the bytes done so far and those there are.

    Raises:
        ConversionError: the model cannot be expressed in the other format; names every tensor that does not fit.
        DataError: a file of it is missing or damaged, or the destination cannot be written.
    """
    require_free(destination)
    source = open_source(folder, to)
    files = _plan(source)
    size = sum(spec.nbytes for tensors in files.values() for spec in tensors.values())
    with appearing(destination, size) as aside:
        _write_weights(source, files, aside, progress or (lambda done, total: None))
        _write_config(source, aside)
        _write_index(files, aside)
        report = _report(source, _carry(source, aside))
        _write_json(aside / REPORT, vars(report))
    return report


def _plan(source: Source) -> Files:
    kept: dict[str, Spec] = {}
    aside: dict[str, Spec] = {}
    for move in source.moves:
        if (read := source.tensors.get(move.read)) is None and move.place.optional:
            continue
        # Zeros have the router's dtype.
        dtype = (read or source.tensors["model.layers.0.mlp.router.weight"]).dtype
        stacked = () if move.write_row is None else (move.write_row + 1,)  # the last row says how many there are
        to_extras = source.format == "released" and move.place.ours is None
        (aside if to_extras else kept)[move.write] = Spec(dtype, (*stacked, *move.place.shape))
    shares: list[dict[str, Spec]] = [{}]
    size = 0
    for name, spec in kept.items():
        size += spec.nbytes
        if shares[-1] and size > SHARD_BYTES:
            shares.append({})
            size = spec.nbytes
        shares[-1][name] = spec
    files = {f"model-{n:05}-of-{len(shares):05}.safetensors": share for n, share in enumerate(shares, 1)}
    return files | ({EXTRAS: aside} if source.format == "released" else {})


def _write_weights(source: Source, files: Files, folder: Path, progress: Callable[[int, int], None]) -> None:
    moves: dict[str, list[Move]] = {}
    for move in source.moves:
        moves.setdefault(move.read, []).append(move)
    total = sum(spec.nbytes for spec in source.tensors.values())
    done = 0
    with ExitStack() as stack, ThreadPoolExecutor(1) as checker:
        outputs: dict[str, SafetensorsFile] = {}
        for name, tensors in files.items():
            metadata = {CONFIG_METADATA: source.published_config or ""} if name == EXTRAS else {}
            output = stack.enter_context(closing(SafetensorsFile(folder / name, tensors, metadata)))
            outputs |= dict.fromkeys(tensors, output)
        for file in dict.fromkeys(source.file_of.values()):
            damage = checker.submit(shards.damaged_record, file)
            for size in _write_shard(file, moves, outputs):
                done += size
                progress(done, total)
            if (record := damage.result()) is not None:
                raise DataError(f"{file} is corrupt ({record} is not what was saved); copy or download it again")


def _write_shard(file: Path, moves: Mapping[str, list[Move]], outputs: Mapping[str, SafetensorsFile]) -> Iterator[int]:
    """Yields the bytes of each tensor once it is written; at the end nothing of the file is mapped any more."""
    for key, tensor in shards.read_shard(file).items():
        for move in moves[key]:
            part = tensor if move.read_row is None else tensor[move.read_row]
            outputs[move.write].write(move.write, move.write_row, part)
        yield tensor.nbytes


def _write_config(source: Source, folder: Path) -> None:
    if source.format == "released":
        source.config.save_pretrained(folder)
        return
    kept = json.loads(source.published_config) if source.published_config else None
    published = released_config.to_published(source.config, kept)
    text = source.published_config if published == kept else None
    (folder / CONFIG_NAME).write_text(text or json.dumps(published, indent=2) + "\n", encoding="utf-8")


def _write_index(files: Files, folder: Path) -> None:
    weights = {name: tensors for name, tensors in files.items() if name != EXTRAS}
    size = sum(spec.nbytes for tensors in weights.values() for spec in tensors.values())
    file_of = {key: name for name, tensors in weights.items() for key in tensors}
    _write_json(folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": {"total_size": size}, "weight_map": file_of})


def _carry(source: Source, folder: Path) -> list[str]:
    files = sorted({file for pattern in CARRIED for file in source.folder.glob(pattern) if file.is_file()})
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in files]


def _report(source: Source, carried: list[str]) -> Report:
    used = {CONFIG_NAME, *carried, *(file.name for file in source.file_of.values())}
    left = [file.name for file in source.folder.iterdir() if not file.name.endswith(".index.json")]
    return Report(
        to="moepp" if source.format == "released" else "released",
        keys=[
            {
                "kind": move.place.kind,
                "published": move.place.published,
                "ours": move.place.ours,
                "row": move.place.row,
                "shape": list(move.place.shape),
                "dtype": str(source.tensors[move.read].dtype).removeprefix("torch."),
                "bytes": Spec(source.tensors[move.read].dtype, move.place.shape).nbytes,
                "read_from": source.file_of[move.read].name,
            }
            for move in source.moves
            if move.read in source.tensors
        ],
        carried=carried,
        left=sorted(set(left) - used),
        filled=[m.write for m in source.moves if m.read not in source.tensors and not m.place.optional],
    )


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
