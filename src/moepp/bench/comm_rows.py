"""What ``moepp bench comm`` says: one :class:`CommRow` per variant and link, and the JSON file that holds them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from .rows import facts, read_results, write_results


@dataclass(frozen=True, kw_only=True)
class CommRow:
    """One variant over one link. Times are medians over rounds, bytes are of one process and one step."""

    variant: Literal["moepp", "vanilla"]
    tau: float | None
    size: str
    dtype: str
    processes: int
    threads: int
    tokens: int
    """Of each process, in one step."""
    routing: Literal["synthetic", "untrained"]
    seed: int
    linked: bool
    """Whether the processes were in network namespaces; else they talked as processes of one machine do."""
    bandwidth_mbit: float | None = None
    """None: not limited."""
    latency_ms: float = 0.0
    rounds: int | None = None
    step_s: float | None = None
    """Forward and backward through one layer, until the slowest process was through."""
    step_iqr_s: float | None = None
    exchange_s: float | None = None
    """Of the step, in all-to-alls, waiting for other processes included; the processes' mean."""
    compute_s: float | None = None
    """The rest of a process's step."""
    gain: float | None = None
    """The vanilla twin's step over this one's, in the same round."""
    gain_iqr: float | None = None
    pairs: float | None = None
    """(token, FFN expert) pairs of a process's tokens."""
    payload_bytes: float | None = None
    """To other processes, as computed from the arguments of the all-to-alls."""
    wire_bytes: float | None = None
    """That the process's link sent, by the interface's own counter; None without a link."""
    small_exchange_s: float | None = None
    """An exchange of one number with each other process, over the same link."""
    reason: str | None = None
    """Why nothing was measured, where the times are null."""


@dataclass(frozen=True)
class CommResults:
    """The rows of one command on one machine."""

    machine: dict[str, Any]
    versions: dict[str, str]
    command: str
    rows: Sequence[CommRow]

    @classmethod
    def here(cls, rows: Sequence[CommRow]) -> "CommResults":
        """Rows that were measured just now, by the command that is running."""
        return cls(**facts(), rows=rows)

    def write(self, path: Path) -> None:
        """Writes the JSON file."""
        content = {"machine": self.machine, "versions": self.versions, "command": self.command}
        write_results(path, content, [asdict(row) for row in self.rows])

    @classmethod
    def read(cls, path: Path) -> "CommResults":
        """Reads what :meth:`write` wrote.

        Raises:
            DataError: the file is not of that kind.
        """
        try:
            return cls(*read_results(path, lambda row: CommRow(**row)))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} holds no results of this benchmark: {error}; write it with `moepp bench comm --json`"
            ) from error
