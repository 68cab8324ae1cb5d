"""What ranks say about where they are, and what it says about who hangs."""

import json
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .ranks import named

_ORDER = (
    "setting up",
    "fetching samples",
    "forward/backward",
    "optimizer",
    "logging",
    "validating",
    "saving",
    "finishing",
    "ended",
)


@dataclass(frozen=True)
class Beat:
    """A sign of life."""

    number: int
    """Counts up; -1 is the last."""
    phase: str
    step: int
    idle: float
    """Seconds without progress."""
    where: str
    """The innermost line of Python that the main thread is in."""
    waits: bool
    """Whether that can be a wait for other ranks."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> "Beat":
        return cls(**json.loads(text))

    @property
    def doing(self) -> str:
        return f"{self.phase}, step {self.step}"


def innermost(thread: threading.Thread) -> tuple[str, bool]:
    """The line of Python that a thread is in, as ``folder/file.py:line function``, and whether ranks wait there."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "", False
    file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
    # Collectives of the backward pass are called by autograd's engine, which Python does not see.
    waits = name == "_engine_run_backward" or "torch/distributed/" in file.as_posix()
    return f"{'/'.join(file.parts[-2:])}:{frame.f_lineno} {name}", waits


def who_hangs(beats: Mapping[int, Beat | None]) -> str:
    """Who keeps a job from moving: the ranks that do not answer (None), or else those that are behind the others, or do
    not wait for them."""
    alive = {rank: beat for rank, beat in beats.items() if beat is not None}
    if silent := [rank for rank in beats if rank not in alive]:
        do = "do not answer" if len(silent) > 1 else "does not answer"
        return f"{named(silent)} {do} (stopped, killed, or the machine is gone); {_waiting(alive.values())}"
    if ended := [rank for rank, beat in alive.items() if beat.number < 0]:
        others = [beat for beat in alive.values() if beat.number >= 0]
        if others:
            return f"{named(ended)} {'have' if len(ended) > 1 else 'has'} ended; {_waiting(others)}"
    place = {rank: (beat.step, _ORDER.index(beat.phase), beat.waits) for rank, beat in alive.items()}
    behind = [rank for rank in place if place[rank] == min(place.values())]
    if len(behind) < len(alive):
        first = alive[behind[0]]
        have = "have" if len(behind) > 1 else "has"
        return (
            f"{named(behind)} {have} not moved for {first.idle:.0f} s: {first.doing}, in {first.where}; "
            f"{_waiting(beat for rank, beat in alive.items() if rank not in behind)}"
        )
    first = alive[behind[0]]
    at: dict[str, list[int]] = {}
    for rank, beat in alive.items():
        at.setdefault(beat.where, []).append(rank)
    places = ", ".join(f"{named(ranks)} in {where}" for where, ranks in at.items())
    return f"no rank has moved for {first.idle:.0f} s: all are at {first.doing}: {places}"


def _waiting(others: Iterable[Beat]) -> str:
    return f"the others wait in {' or '.join(sorted({beat.doing for beat in others}))}"
