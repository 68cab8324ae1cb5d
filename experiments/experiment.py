"""What every file of this folder is: a title, the models it needs, a result, a drawing, and one line that runs it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moepp.bench import facts

from .lab import Lab
from .result import Result
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

    def runs(self, scale: Scale) -> list[Run]:
        """What must be trained at this scale."""
        return [Run(scale, variant, seed) for variant in self.variants for seed in scale.seeds]

    def measure(self, lab: Lab) -> Result:
        """The result, signed with where it comes from; all runs must be there."""
        return replace(
            self.result(lab),
            name=self.name,
            title=self.title,
            scale=lab.scale.name,
            facts=facts(),
            seeds=lab.scale.seeds if self.variants else (),
            keys=[run.key() for run in self.runs(lab.scale)],
        )
