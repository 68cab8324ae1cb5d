"""What an experiment says: tables, claims with their outcome, and the numbers behind both, as JSON."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from moepp.errors import DataError

Outcome = Literal["agrees", "disagrees", "unresolved", "not measured"]
"""Of a claim of the paper, or of a question of ours: ``unresolved`` is where an interval spans 0."""


@dataclass(frozen=True)
class Claim:
    """One sentence that the numbers decide, and what they say."""

    text: str
    outcome: Outcome
    evidence: str

    def __post_init__(self) -> None:
        assert self.outcome in get_args(Outcome)


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
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Machine, versions and command."""
    seeds: Sequence[int] = ()
    keys: Sequence[str] = ()
    """Of the runs that it rests on."""

    def write(self, folder: Path) -> Path:
        """Writes ``NAME.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")
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
