"""What every file of this folder is: a title, the models it needs, a result, a drawing, and one line that runs it."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moepp.bench import facts

from .lab import Lab
from .provenance import code_hash, provenance
from .record import Record
from .result import Origin, Result
from .runs import Run
from .scales import Scale
from .variants import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One table, figure or question."""

    name: str
    """The file's."""
    title: str
    variants: Sequence[Variant]
    """What must be trained, each once a seed."""
    result: Callable[[Lab], Result]
    draw: Callable[[Result, "Figure"], None] | None = None
    more_seeds: bool = False
    """With the scale's further seeds."""

    @property
    def origin(self) -> Origin:
        """Whose claims it decides where they don't say so: tables and figures are the paper's."""
        return "paper" if self.name.startswith(("table", "figure")) else "ours"

    def runs(self, scale: Scale) -> list[Run]:
        """What must be trained at this scale."""
        seeds = self._at(scale).seeds
        return [Run(scale, variant, seed) for variant in self.variants for seed in seeds]

    def _at(self, scale: Scale) -> Scale:
        return scale.with_more_seeds() if self.more_seeds else scale

    def fingerprint(self, lab: Lab) -> str:
        """Equal where measuring again would give the same but for the clock's noise."""
        here = facts()
        parts = [self.name, [run.key() for run in self.runs(lab.scale)], lab.device, code_hash(self.name)]
        parts += [here["machine"], here["versions"], [str(path.resolve()) for path in lab.checkpoints]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def measure(self, lab: Lab) -> Result:
        """The result, signed with where it comes from; all runs must be there."""
        runs = self.runs(lab.scale)
        records = {run: lab.pool.record(run) for run in runs}
        whole = {run: one for run, one in records.items() if one.failure is None}
        lost = [variant for variant in self.variants if not any(run.variant == variant for run in whole)]
        if lost:
            found = Result(tables=[], claims=[], limits=["Nothing was measured: a model is missing for all seeds."])
        else:
            found = self.result(replace(lab, scale=self._at(lab.scale)))
        trained = [{name: one.facts[name] for name in ("machine", "versions")} for one in whole.values()]
        return replace(
            found,
            claims=[replace(claim, origin=claim.origin or self.origin) for claim in found.claims],
            limits=[*_diverged(records), *found.limits],
            name=self.name,
            title=self.title,
            scale=lab.scale.name,
            device=lab.device,
            facts=provenance(),
            trained=[one for index, one in enumerate(trained) if one not in trained[:index]],
            seeds=sorted({run.seed for run in whole}),
            keys=[run.key() for run in whole],
            fingerprint=self.fingerprint(lab),
        )


def _diverged(records: Mapping[Run, Record]) -> Iterator[str]:
    """What is missing of each variant, by name: nobody shall take the surviving seeds for all."""
    for variant in dict.fromkeys(run.variant for run in records):
        mine = {run.seed: one.failure for run, one in records.items() if run.variant == variant}
        lost = {seed: failure for seed, failure in mine.items() if failure is not None}
        if lost:
            seeds = ", ".join(map(str, lost))
            yield (
                f"{variant.name}: {len(mine) - len(lost)} of {len(mine)} seeds; training diverged with seed {seeds} "
                f"({next(iter(lost.values()))})."
            )
