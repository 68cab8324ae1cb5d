"""What the figures of the routing conclude from."""

from dataclasses import replace

import pytest

from experiments.figure4 import _halves, spreads
from experiments.figure5 import beyond_chance, correlations
from moepp.analyze.routing_table import Document

from ..analyze.factory import written_table


def test_what_computes_most_is_chosen_on_the_other_seeds() -> None:
    per_token = {0: {"a": 1.6, "b": 1.4, "c": 1.0}, 1: {"a": 1.0, "b": 1.5, "c": 1.2}}
    assert spreads(per_token) == {0: pytest.approx(-0.2), 1: pytest.approx(-0.2)}
    alike = {seed: {"a": 1.6, "b": 1.4} for seed in range(3)}
    assert list(spreads(alike).values()) == pytest.approx([0.2] * 3)


def test_orders_are_compared_by_name_and_held_against_shuffled_ones() -> None:
    one = {str(index): float(index) for index in range(50)}
    other = dict(reversed(one.items()))
    against = {name: -value for name, value in one.items()}
    found = correlations([one, other, against])
    assert [value for value, _ in found] == pytest.approx([1.0, -1.0, -1.0])
    assert all(0.2 < by_chance < 0.7 for _, by_chance in found)
    outcomes = [beyond_chance(pairs) for pairs in (found[:1], found, found[1:], [])]
    assert outcomes == ["agrees", "unresolved", "disagrees", "unresolved"]


def test_halves_of_a_text_are_of_different_documents() -> None:
    experts = [[[expert, 5]] for expert in (0, 0, 1, 1, 2)]
    table = written_table(experts, document=[0, 0, 1, 1, 2], position=[0, 1, 0, 1, 0])
    table = replace(table, documents=tuple(Document(name, "a") for name in "xyz"))
    (halves,) = _halves(table).values()
    assert [half[0, :3].tolist() for half in halves] == [[1 / 3, 0, 1 / 6], [0, 0.5, 0]]
