"""From a checkpoint of any number of processes to a saved model: one folder of safetensors, by one process."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..errors import DataError
from ..model import MoEPPForCausalLM, load_config
from . import dcp
from .card import CARD_FILE

SHARD_BYTES = 2**30
_LEFT = ("*.distcp", dcp.METADATA, "*.pt", "schedule.json", "stream.json", "trainer_state.json", "manifest.json")
"""Files of a checkpoint that only a run has a use for."""


def save_configuration(model: MoEPPForCausalLM, folder: Path) -> None:
    """Writes what ``save_pretrained`` writes, except for the weights."""
    config = copy.deepcopy(model.config)
    config.architectures = [MoEPPForCausalLM.__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    assert model.generation_config is not None
    model.generation_config.save_pretrained(folder)


def weight_bytes(checkpoint: Path) -> int:
    """What the weights in a checkpoint take.

    Raises:
        DataError: there are none.
    """
    return sum(map(_size, _weights(checkpoint).values()))


def export(checkpoint: Path, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes a checkpoint's model into an empty folder, as ``save_pretrained`` would have.

    One process does it, whatever number wrote the checkpoint, and never holds more than :data:`SHARD_BYTES` of weights,
    or the largest tensor.

    Args:
        checkpoint: whole; see :func:`moepp.train.checkpoint.verify`.
        progress: called with the bytes done so far and those there are.
    """
    kinds = _weights(checkpoint)
    shares: list[list[str]] = [[]]
    size = 0
    for name, kind in kinds.items():
        size += _size(kind)
        if shares[-1] and size > SHARD_BYTES:
            shares.append([])
            size = _size(kind)
        shares[-1].append(name)
    total, done = sum(map(_size, kinds.values())), 0
    file_of: dict[str, str] = {}
    for number, names in enumerate(shares, 1):
        file = SAFE_WEIGHTS_NAME if len(shares) == 1 else f"model-{number:05}-of-{len(shares):05}.safetensors"
        save_file(dcp.read_weights(checkpoint, names), folder / file, {"format": "pt"})
        file_of |= dict.fromkeys(names, file)
        done += sum(_size(kinds[name]) for name in names)
        if progress is not None:
            progress(done, total)
    if len(shares) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    left = {path for pattern in _LEFT for path in checkpoint.glob(pattern)}
    carried = {*checkpoint.iterdir()} - left
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    if state["global_step"] == state["max_steps"]:  # the card of the finished run is about these weights
        carried |= {*checkpoint.parent.glob(CARD_FILE)}
    for path in carried:
        shutil.copyfile(path, folder / path.name)


def _weights(checkpoint: Path) -> dict[str, TensorStorageMetadata]:
    kinds = dcp.weights(checkpoint)
    if load_config(checkpoint).tie_word_embeddings:
        kinds.pop("lm_head.weight", None)
    if not kinds:
        raise DataError(f"{checkpoint} holds no weights; give a checkpoint that a training run wrote")
    return kinds


def _size(kind: TensorStorageMetadata) -> int:
    return kind.size.numel() * kind.properties.dtype.itemsize
