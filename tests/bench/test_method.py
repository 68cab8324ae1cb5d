"""Measuring: what runs how often and in which order."""

from moepp.bench import interleave, machine


def test_every_variant_runs_in_every_round_in_changing_order() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = interleave(variants, rounds=8)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == 10  # two to warm up
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert {timing.rounds for timing in timings.values()} == {8}


def test_slower_work_has_a_larger_median() -> None:
    timings = interleave({"short": lambda: sum(range(100)), "long": lambda: sum(range(300_000))}, rounds=5)
    assert timings["long"].median > timings["short"].median
    assert timings["long"].iqr >= 0


def test_machine_names_processor_and_versions() -> None:
    facts = machine()
    assert facts["processor"]
    assert facts["cores"] >= 1
    assert facts["torch"].startswith("2.")


def test_a_budget_ends_the_rounds_but_not_before_there_are_five() -> None:
    assert interleave({"a": lambda: None}, rounds=30, budget=1e-9)["a"].rounds == 5
    assert interleave({"a": lambda: None}, rounds=7, budget=60.0)["a"].rounds == 7


def test_rounds_can_be_compared_one_by_one() -> None:
    timing = interleave({"a": lambda: None}, rounds=6)["a"]
    assert len(timing.seconds) == 6
    assert min(timing.seconds) <= timing.median <= max(timing.seconds)
