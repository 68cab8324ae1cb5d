"""What the ranks of a job tell each other beside tensors: errors, recipes, versions.

It goes through the job's key-value store, not through collectives: the store answers while a rank is missing or hangs,
so that those who wait can say for whom. On a single process each function does what it would do without a job.
"""

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from .. import __version__
from ..errors import ConfigError, MoEPPError, first_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")
_POLL = 0.02  # seconds between two looks at the store
_LINGER = 1.0  # seconds that rank 0 gives the others to read: the store may end with it
_exchanges = count()


@dataclass(frozen=True)
class Job:
    """This process's place among the ranks."""

    store: "Store"
    rank: int
    world_size: int
    timeout: timedelta


def rank() -> int:
    """This process's rank; 0 on a single process, which is also the rank that prints."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """The number of ranks; 1 on a single process."""
    return dist.get_world_size() if _joined() else 1


def job() -> Job | None:
    """The job that the default process group belongs to; None on a single process."""
    if not _joined():
        return None
    store = dist.distributed_c10d._get_default_store()
    return Job(store, dist.get_rank(), dist.get_world_size(), store.timeout)  # pyright: ignore[reportAttributeAccessIssue]


def agreed(what: str, setup: Callable[[], T], *, among: Job | None = None) -> T:
    """Calls ``setup`` on every rank; if it fails on any, raises on all of them, and rank 0 prints for all.

    Every rank has to call this, in the same order.

    Args:
        what: setup in the past tense, for the message about a rank that does not finish it.
        among: the job, where its process group is yet to come.

    Raises:
        MoEPPError: what ``setup`` raises, if it raises the same on all ranks; else one that begins with the ranks that
            failed. An OSError counts as one; other exceptions are defects and end this rank at once.
    """
    among = among or job()
    if among is None:
        return setup()
    value, failure = None, None
    try:
        value = setup()
    except (MoEPPError, OSError) as error:
        failure = error
    said = exchange(among, what, "" if failure is None else str(failure) or type(failure).__name__)
    failed = [rank for rank, text in enumerate(said) if text]
    if not failed:
        return value  # pyright: ignore[reportReturnType]
    alike = [rank for rank in failed if said[rank] == said[failed[0]]]
    if len(alike) < len(said):
        failure = MoEPPError(f"{named(alike)}: {said[failed[0]]}")
    elif not isinstance(failure, MoEPPError):
        failure = MoEPPError(said[0])
    _raise(failure, said_by=0)


def same_everywhere(values: Mapping[str, Any], remedy: str, *, among: Job | None = None) -> None:
    """Checks that the ranks have the same values, which are what JSON can say.

    Raises:
        ConfigError: on all ranks, with the first name for which a rank's value is not rank 0's.
    """
    among = among or job()
    if among is None:
        return
    said = [json.loads(text) for text in exchange(among, "said what they run", json.dumps(dict(values)))]
    for rank, theirs in enumerate(said):
        for name in [*said[0], *theirs]:
            if theirs.get(name) != said[0].get(name):
                difference = f"rank {rank} has {name}={theirs.get(name)!r} and rank 0 {said[0].get(name)!r}"
                _raise(ConfigError(f"{difference}; {remedy}"), said_by=0)


def same_code_everywhere(*, among: Job | None = None) -> None:
    """Checks that the ranks run the same moepp, PyTorch, transformers and Python.

    Raises:
        ConfigError: names the first difference.
    """
    if among is not None or _joined():
        same_everywhere(code_versions(), "install the same versions on all machines", among=among)


def code_versions() -> dict[str, str]:
    """What decides how a recipe is computed: versions, and a digest of moepp's own source files."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return {
        "moepp": __version__,
        "moepp's source files (digest)": digest.hexdigest()[:16],
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "python": platform.python_version(),
    }


def flattened(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under their dotted names, as overrides write them; lists as they are."""
    fields: dict[str, Any] = {}
    for name, value in section.items():
        inner = isinstance(value, Mapping) and value
        fields |= flattened(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return fields


def exchange(among: Job, what: str, text: str) -> list[str]:
    """Every rank's text, in the order of the ranks, once all have called this.

    Raises:
        MoEPPError: the same on all ranks that wait: names those that did not come within the job's timeout.
    """
    store, key = among.store, f"exchange/{next(_exchanges)}"
    keys, over = [f"{key}/{rank}" for rank in range(among.world_size)], f"{key}/over"
    deadline = time.monotonic() + among.timeout.total_seconds()
    try:
        store.set(keys[among.rank], text)
        while not (given_up := store.check([over])) and not store.check(keys):
            if time.monotonic() > deadline:
                _give_up(among, what, keys, over)
            time.sleep(_POLL)
        if given_up:
            said_by, message = json.loads(store.get(over))
            time.sleep(_LINGER if among.rank == 0 else 0)
            _raise(MoEPPError(message), said_by=said_by)
        said = [value.decode() for value in store.multi_get(keys)]
        readers, deadline = store.add(f"{key}/readers", 1), time.monotonic() + _LINGER
        while among.rank == 0 and readers < among.world_size and time.monotonic() < deadline:
            time.sleep(_POLL)
            readers = store.add(f"{key}/readers", 0)
        return said
    except RuntimeError as error:  # DistError, or of a FileStore
        raise MoEPPError(f"the job's store does not answer any more: {first_line(error)}; rank 0 has ended") from error


def _give_up(among: Job, what: str, keys: Sequence[str], over: str) -> None:
    """Says for all who wait, unless another rank was faster, who is missing."""
    missing = [rank for rank, key in enumerate(keys) if not among.store.check([key])]
    message = (
        f"only {len(keys) - len(missing)} of {len(keys)} processes {what} within {among.timeout.total_seconds():g} s: "
        f"{named(missing)} did not; see what they do and that all were started, "
        "or raise distributed.timeout_seconds if they need longer"
    )
    among.store.compare_set(over, "", json.dumps([among.rank, message]))


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def named(ranks: Sequence[int]) -> str:
    """Ranks in words."""
    return f"{'ranks' if len(ranks) > 1 else 'rank'} {', '.join(map(str, ranks))}"


def _raise(error: MoEPPError, *, said_by: int) -> NoReturn:
    error.said_by = said_by
    raise error
