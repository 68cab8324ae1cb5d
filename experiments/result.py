"""What an experiment says: tables, claims with their outcome, and the numbers behind both, as JSON."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from moepp.errors import DataError
from moepp.files import replacing

Outcome = Literal["agrees", "disagrees", "unresolved", "not measured"]
"""Of a claim: ``unresolved`` is where an interval spans what decides it."""
Origin = Literal["paper", "ours", "control"]
"""Who claims: the paper, or we, who ask what it leaves open or check our own set-up."""


@dataclass(frozen=True)
class Claim:
    """One sentence that the numbers decide, and what they say."""

    text: str
    outcome: Outcome
    evidence: str
    origin: Origin | None = None
    """None for that of the experiment's other claims."""

    def __post_init__(self) -> None:
        assert self.outcome in get_args(Outcome)
        assert self.origin in (None, *get_args(Origin))

    @property
    def verdict(self) -> str:
        """The outcome in words: one agrees with a paper, a statement of ours holds."""
        ours = {"agrees": "holds", "disagrees": "does not hold"}
        word = self.outcome if self.origin == "paper" else ours.get(self.outcome, self.outcome)
        return f"control: {word}" if self.origin == "control" else word


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.head) for row in self.rows), self.title


@dataclass(frozen=True, kw_only=True)
class Result:
    """One experiment at one scale."""

    tables: Sequence[Table]
    """The paper's beside ours."""
    claims: Sequence[Claim]
    limits: Sequence[str] = ()
    """What this scale cannot tell, and where the set-up departs from the paper's."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The numbers, by seed: what the plot is drawn from."""
    name: str = ""
    title: str = ""
    scale: str = ""
    device: str = "cpu"
    """What it was measured on."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Machine, versions, commit and command of the measurement."""
    trained: Sequence[Mapping[str, Any]] = ()
    """Machines and versions of the trainings that it rests on, each once."""
    seeds: Sequence[int] = ()
    keys: Sequence[str] = ()
    """Of the runs that it rests on."""
    fingerprint: str = ""
    """Of all that it follows from; measuring again is worth it where that has changed."""

    def write(self, folder: Path) -> Path:
        """Writes ``NAME.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        with replacing(path) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> "Result":
        """What :meth:`write` wrote.

        Raises:
            DataError: it is no such file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["tables"] = [Table(**table) for table in content["tables"]]
            content["claims"] = [Claim(**claim) for claim in content["claims"]]
            return cls(**content)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is no experiment's result: {error}; run the experiment again") from error
