"""The way in for every command: a saved model's folder, checked before and after transformers reads it.

transformers initialises what a checkpoint lacks and passes over what it has too much, with a warning; a command would
then go on with random weights. Here both are errors, and a damaged file is named.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, logging

from ..errors import BackendUnavailable, ConfigError, DataError, MoEPPError, first_line, nearest
from ..fields import check_section
from . import released_config
from .configuration_moepp import MoEPPConfig
from .modeling_moepp import MoEPPForCausalLM
from .shards import UNREADABLE, read_json, read_shard, weight_files

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
_SHOWN = 3


def load_model(
    path: str | Path, *, dtype: str | torch.dtype | None = "auto", device: str = "cpu", **kwargs: Any
) -> MoEPPForCausalLM:
    """A saved model, ready for inference.

    Args:
        path: a folder written by ``save_pretrained`` or ``moepp train``, or one with the published checkpoint.
        dtype: of the weights; ``"auto"`` and None keep the one they were saved in.
        device: ``"auto"`` is the accelerator if there is one.
        kwargs: of transformers' ``from_pretrained``.

    Raises:
        DataError: the folder holds no such model, a file of it is missing or damaged, or weights and configuration
            disagree; the message names the file or the weights.
        ConfigError: the configuration, ``dtype`` or ``device`` cannot work.
        BackendUnavailable: the device is not here.
    """
    folder = model_folder(path)
    load_config(folder)
    _require_readable_weights(folder)
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} does not exist; {nearest(dtype, DTYPES)}")
    if (place := _device(device)) != "cpu":
        kwargs.setdefault("device_map", {"": place})
    try:
        with _without_warnings():
            loaded: Any = MoEPPForCausalLM.from_pretrained(
                folder, dtype=dtype or "auto", ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
            )
    except MoEPPError:
        raise
    except torch.OutOfMemoryError as error:
        raise DataError(
            f"{folder} does not fit into the memory of device={place!r} with dtype={str(dtype)!r}; "
            "use bfloat16, or another device"
        ) from error
    except UNREADABLE as error:
        raise DataError(f"{folder} cannot be loaded: {first_line(error)}; save or download it again") from error
    model, report = loaded
    _require_match(folder, report)
    return model


def load_config(path: str | Path) -> MoEPPConfig:
    """The configuration of a saved model.

    Raises:
        DataError: the folder holds no MoE++ model, or ``config.json`` is damaged.
        ConfigError: a field has a value that cannot work.
    """
    folder = model_folder(path)
    file = folder / CONFIG_NAME
    saved = read_json(file, "save the model again")
    kind = saved.get("model_type") if isinstance(saved, dict) else None
    if kind not in (MoEPPConfig.model_type, released_config.MODEL_TYPE):
        raise DataError(
            f"{file} is of a model of type {kind!r}, without MoE++ layers; give a folder with a moepp model"
        )
    if kind == MoEPPConfig.model_type:
        ours = {key: value for key, value in saved.items() if key in MoEPPConfig.__annotations__}
        check_section(str(file), ours, MoEPPConfig.__annotations__)
    try:
        return MoEPPConfig.from_pretrained(folder)
    except MoEPPError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{file} cannot be used: {first_line(error)}; save the model again") from error


def model_folder(path: str | Path) -> Path:
    """The folder, if a model is saved in it.

    Raises:
        DataError: there is none; a model one level below is named.
    """
    folder = Path(path)
    if (folder / CONFIG_NAME).is_file():
        return folder
    if not folder.exists():
        raise DataError(
            f"model folder {str(path)!r} does not exist; check the path, or download a model there: "
            f"hf download NAME --local-dir {path}"
        )
    below = sorted(folder.glob(f"*/{CONFIG_NAME}"))
    remedy = f"did you mean {below[0].parent}?" if below else "give a folder written by save_pretrained or moepp train"
    raise DataError(f"{folder} holds no {CONFIG_NAME}, so no model; {remedy}")


def _require_readable_weights(folder: Path) -> None:
    """Opens every file of weights, without reading the weights."""
    if (folder / GENERATION_CONFIG_NAME).is_file():  # transformers passes over a damaged one
        read_json(folder / GENERATION_CONFIG_NAME, "save the model again, or remove the file")
    for file in weight_files(folder):
        read_shard(file)


def _require_match(folder: Path, report: dict[str, Any]) -> None:
    """Raises for weights that the configuration asks for and the files lack, or the other way round."""
    wrong = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "of another shape": [
            f"{key} (saved {tuple(saved)}, configured {tuple(configured)})"
            for key, saved, configured in sorted(report["mismatched_keys"])
        ],
        "not converted": sorted(map(str, report.get("error_msgs", ()))),
    }
    said = [f"{len(names)} {kind}: {_some(names)}" for kind, names in wrong.items() if names]
    if said:
        raise DataError(
            f"{folder / CONFIG_NAME} does not describe the saved weights: {'; '.join(said)}; "
            "restore the configuration they were saved with"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _device(device: str) -> str:
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device == "auto":
        return "cpu" if here is None else here.type
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={device!r} does not exist; use auto, cpu or cuda") from error
    if wanted.type == "cpu":
        return "cpu"
    if here is None or here.type != wanted.type or (wanted.index or 0) >= torch.accelerator.device_count():
        raise BackendUnavailable(f"device={device!r} is not there as far as torch sees; use auto or cpu")
    return device


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What transformers would report in a table is raised here, in one line."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
