"""How experts are loaded by texts, and how far two texts' loads lie apart."""

import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

Halves = Mapping[str, Sequence[Tensor]]
"""By text, the (layers, experts) shares of the choices in each of its halves, which are of different documents.

Tokens of one document choose alike, so what two samples of one text differ by is told by its halves, not by a formula
for independent tokens.
"""


def distance(loads: Halves, one: str, other: str) -> float:
    """Total variation between two texts' loads, or the halves of one; mean over layers and pairs of halves."""
    pairs = [(0, 1)] if one == other else [(0, 0), (0, 1), (1, 0), (1, 1)]
    return statistics.fmean(float((loads[one][i] - loads[other][j]).abs().sum(-1).mean()) / 2 for i, j in pairs)


def distances(loads: Halves) -> dict[str, dict[str, float]]:
    """Between all texts; between halves where a text meets itself."""
    return {one: {other: distance(loads, one, other) for other in loads} for one in loads}


def apart(found: Mapping[str, Mapping[str, float]], texts: Sequence[str]) -> float:
    """The mean distance between different texts, less that between halves of one."""
    between = [found[one][other] for one in texts for other in texts if one != other]
    return statistics.fmean(between) - statistics.fmean(found[text][text] for text in texts)
