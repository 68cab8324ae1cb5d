"""torchrun --max-restarts: the same command again, in the folder that the job itself began.

A command without ``--resume`` refuses a folder that is in use, and so it must when torchrun runs it again after such a
refusal. The job remembers which folder it may go on in, in the store that torchrun keeps through its restarts.
"""

from pathlib import Path

from . import checkpoint
from .group import Group
from .ranks import job

_KEY = "moepp/run"


def began_in(run: Path) -> bool:
    """Whether an earlier attempt of this job has begun to write into the folder."""
    now = job()
    if now is None or not now.restarts or now.attempts is None or not now.attempts.check([_KEY]):
        return False
    return now.attempts.get(_KEY).decode() == str(run.resolve())


def begins_in(run: Path) -> None:
    """Remembers, for later attempts, that the folder is this job's."""
    now = job()
    if now is not None and now.attempts is not None and now.rank == 0:
        now.attempts.set(_KEY, str(run.resolve()))


def newest_whole(run: Path, group: Group) -> Path | None:
    """The newest checkpoint that is not damaged, for nobody is there to choose one; every rank must call this."""
    newest_first = reversed(checkpoint.checkpoints(run))
    return next((found for found in newest_first if checkpoint.damage(found, group) is None), None)
