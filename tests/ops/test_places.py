"""Counting within groups: both ways against a loop."""

from collections import Counter

import pytest
import torch

from moepp.ops.places import places


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize(("entries", "groups"), [(0, 3), (1, 1), (63, 4), (700, 9), (40, 200)])
def test_places_count_the_earlier_entries_of_a_group(entries: int, groups: int, backend: str) -> None:
    group = torch.randint(0, groups, (entries,), generator=torch.Generator().manual_seed(entries))
    seen: Counter[int] = Counter()
    expected = []
    for entry in group.tolist():
        expected.append(seen[entry])
        seen[entry] += 1
    assert places(group, groups, backend=backend).tolist() == expected
