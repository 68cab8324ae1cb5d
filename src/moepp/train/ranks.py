"""What the ranks of a job tell each other beside tensors: errors, recipes, versions.

It goes through the job's key-value store, not through collectives: the store answers while a rank is missing or hangs,
so that those who wait can say for whom. On a single process each function does what it would do without a job.
"""

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """What the ranks write here, an earlier attempt of a job that torchrun has restarted cannot have written."""
    rank: int
    world_size: int
    timeout: timedelta
    attempts: "Store | None" = None
    """What outlives the attempts."""
    restarts: int = 0


_joined: list[Job] = []


@contextmanager
def joined(job: Job) -> Iterator[None]:
    """While the block runs, this process is one of the job's."""
    _joined.append(job)
    try:
        yield
    finally:
        _joined.pop()


def job() -> Job | None:
    """The job that this process is part of: one that it joined, or that its default process group makes; else None."""
    if _joined:
        return _joined[-1]
    if dist.is_available() and dist.is_initialized():
        store = dist.distributed_c10d._get_default_store()
        return Job(store, dist.get_rank(), dist.get_world_size(), store.timeout)  # pyright: ignore[reportAttributeAccessIssue]
    return None


def rank() -> int:
    """This process's rank; 0 on a single process, which is also the rank that prints."""
    among = job()
    return among.rank if among else 0


def world_size() -> int:
    """The number of ranks; 1 on a single process."""
    among = job()
    return among.world_size if among else 1


def largest(value: int) -> int:
    """The largest of the ranks' values, on all of them; a collective."""
    if world_size() == 1:
        return value
    values = torch.tensor(value)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values)


def agreed(what: str, setup: Callable[[], T]) -> T:
    """Calls ``setup`` on every rank; if it fails on any, raises on all of them, and rank 0 prints for all.

    Every rank has to call this, in the same order.

    Args:
        what: setup in the past tense, for the message about a rank that does not finish it. It may call this, too, and
            a rank that fails before it does is heard there; collectives in it are not, so something agreed on has to
            come before each.

    Raises:
        MoEPPError: what ``setup`` raises, if it raises the same on all ranks; else one that begins with the ranks that
            failed. An OSError counts as one; other exceptions are defects and end this rank at once.
    """
    among = job()
    if among is None:
        return setup()
    value, failure = None, None
    try:
        value = setup()
    except (MoEPPError, OSError) as error:
        if isinstance(error, MoEPPError) and error.said_by is not None:
            raise  # agreed on further inside
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


def same_everywhere(values: Mapping[str, Any], remedy: str) -> None:
    """Checks that the ranks have the same values, which are what JSON can say.

    Raises:
        ConfigError: on all ranks, with the first name for which a rank's value is not rank 0's.
    """
    among = job()
    if among is None:
        return
    said = [json.loads(text) for text in exchange(among, "said what they run", json.dumps(dict(values)))]
    for rank, theirs in enumerate(said):
        for name in [*said[0], *theirs]:
            if theirs.get(name) != said[0].get(name):
                difference = f"rank {rank} has {name}={theirs.get(name)!r} and rank 0 {said[0].get(name)!r}"
                _raise(ConfigError(f"{difference}; {remedy}"), said_by=0)


def same_code_everywhere() -> None:
    """Checks that the ranks run the same moepp, PyTorch, transformers and Python.

    Raises:
        ConfigError: names the first difference.
    """
    if world_size() > 1:
        same_everywhere(code_versions(), "install the same versions on all machines")


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


def named(ranks: Sequence[int]) -> str:
    """Ranks in words."""
    return f"{'ranks' if len(ranks) > 1 else 'rank'} {', '.join(map(str, ranks))}"


def _raise(error: MoEPPError, *, said_by: int) -> NoReturn:
    error.said_by = said_by
    raise error
