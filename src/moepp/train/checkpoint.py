"""Checkpoints that are whole or not there: written aside, sealed with a manifest, then renamed.

A kill at any moment leaves the earlier checkpoints as they were. What a kill leaves behind, under ``.incomplete``, is
removed by the next run.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..files import sync
from ..model import MoEPPConfig
from .group import Group

STREAM_FILE = "stream.json"
_STAGING = ".incomplete"
_MANIFEST = "manifest.json"
_INDEX = ".metadata"  # torch.distributed.checkpoint's; earlier versions of moepp saved in another format
_PREFIX = "checkpoint-"
_NAME = re.compile(r"checkpoint-\d+")


def staging(run: Path) -> Path:
    """The folder in which this run's checkpoints are written before they are renamed."""
    return run / _STAGING


def clear_staging(run: Path) -> None:
    """Removes what an earlier, killed run left half-written."""
    shutil.rmtree(staging(run), ignore_errors=True)


@contextmanager
def moved_into(run: Path) -> Iterator[Path]:
    """A folder to write files in, which replace those of the run when the block ends, each in one rename."""
    aside = staging(run) / "files"
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in aside.iterdir():
            path.replace(run / path.name)
    finally:
        clear_staging(run)


@contextmanager
def writing(run: Path, what: str) -> Iterator[None]:
    """Leaves nothing half-written under :func:`staging` when a write fails.

    Raises:
        DataError: names what could not be written, why, and from where the run can go on.
    """
    try:
        yield
    except Exception as error:  # for a full disk torch, safetensors and tokenizers each raise something of their own
        clear_staging(run)
        raise not_written(what, run, (str(error).splitlines() or [type(error).__name__])[0]) from error


def not_written(what: str, run: Path, reason: str) -> DataError:
    """The error for a write that failed; in a job of several processes, rank 0 prints it for all."""
    error = DataError(f"{what} could not be written to {run}: {reason}; make room, or check output_dir; {way_on(run)}")
    error.said_by = 0
    return error


def way_on(run: Path) -> str:
    """The end of a message about a run that stopped."""
    saved = checkpoints(run)
    return f"--resume goes on from {saved[-1]}" if saved else "no checkpoint had been written"


def seal(written: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Brings files of a checkpoint to the disk; returns what the manifest says of each, by name."""
    said = {}
    for path in files:
        said[path.relative_to(written).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
        sync(path)
    return said


def publish(written: Path, run: Path, identity: Mapping[str, Any], files: Mapping[str, Any]) -> Path:
    """Moves a checkpoint that was written under :func:`staging` to its place in one rename.

    Args:
        written: the checkpoint's folder.
        identity: what a resuming run must have in common with this one.
        files: what :func:`seal` said of all of its files.
    """
    manifest = written / _MANIFEST
    manifest.write_text(json.dumps({"identity": dict(identity), "files": dict(files)}, indent=1), encoding="utf-8")
    sync(manifest)
    sync(written)
    target = run / written.name
    if target.exists():  # an earlier, damaged one of the same step; out of the way in one rename, too
        target.rename(staging(run) / f"replaced-{written.name}")
    written.rename(target)
    sync(run)
    clear_staging(run)
    return target


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, the oldest first."""
    found = [p for p in run.glob(f"{_PREFIX}*") if p.is_dir() and _NAME.fullmatch(p.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps behind a checkpoint."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def supersede(run: Path, start: Path | None) -> None:
    """Renames the checkpoints after the one that a run goes on from, or all of them: they belong to another future."""
    first = 0 if start is None else step_of(start)
    for later in checkpoints(run):
        if (start is None or start.resolve().parent == run.resolve()) and step_of(later) > first:
            target = run / f"superseded-{later.name}"
            shutil.rmtree(target, ignore_errors=True)
            later.rename(target)


def rotate(run: Path, keep: int | None) -> None:
    """Deletes all but the newest ``keep`` checkpoints; None and 0 keep all."""
    for old in checkpoints(run)[:-keep] if keep and keep > 0 else []:
        # Renamed first: a kill while deleting must not leave a checkpoint with files missing.
        staging(run).mkdir(exist_ok=True)
        shutil.rmtree(old.rename(staging(run) / f"old-{old.name}"))
    clear_staging(run)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is, or was, a checkpoint rather than a saved model."""
    return (folder / _MANIFEST).is_file() or bool(_NAME.fullmatch(folder.resolve().name))


def verify(checkpoint: Path, group: Group | None = None) -> None:
    """Reads a checkpoint's every byte; each process of a group, which all must call this, a share of the files.

    Raises:
        DataError: something is missing or damaged; names it, and the checkpoint before it that is whole.
    """
    among = group or Group()
    reason = damage(checkpoint, among)
    if reason is None:
        return
    earlier = takewhile(lambda other: other != checkpoint, checkpoints(checkpoint.parent))
    whole = [other for other in earlier if damage(other, among) is None]
    remedy = f"resume from the one before it: --resume-from {whole[-1]}" if whole else "no earlier checkpoint is whole"
    error = DataError(f"checkpoint {checkpoint} is damaged: {reason}; {remedy}")
    error.said_by = None if group is None else 0
    raise error


def check_identity(checkpoint: Path, identity: Mapping[str, Any]) -> None:
    """Refuses to resume another run's checkpoint.

    Raises:
        ConfigError: names the first field in which the two differ.
    """
    saved = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))["identity"]
    now = json.loads(json.dumps(dict(identity)))
    added = [name for name in now if name not in saved and name.startswith("model.")]
    # A field that a later version added was at its default before it existed.
    saved = {name: getattr(MoEPPConfig, name.removeprefix("model.")) for name in added} | saved
    for name in {**now, **saved}:  # in the order of declaration: what follows from others comes after them
        if saved.get(name) != now.get(name):
            raise ConfigError(
                f"{name}={now.get(name)!r} differs from {saved.get(name)!r}, with which {checkpoint} was trained; "
                "resume with the same value, or start a new run in another output_dir"
            )


def damage(checkpoint: Path, group: Group) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is whole. All processes of the group must call this."""
    found = group.gather(_damage_in_share(checkpoint, group))
    return next((reason for reason in found if reason is not None), None)


def _damage_in_share(checkpoint: Path, group: Group) -> str | None:
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
        if _INDEX not in manifest["files"]:
            return f"{_INDEX} is missing"
        for name, expected in list(manifest["files"].items())[group.rank :: group.size]:
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if _digest(path) != expected["sha256"]:
                return f"{name} does not match its checksum"
    except FileNotFoundError:
        return f"{_MANIFEST} is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} cannot be read"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
