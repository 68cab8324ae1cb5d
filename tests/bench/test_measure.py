"""From variants to rows: what is checked, what is timed, and the arithmetic between."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moepp.bench import Case, Group, Row, Timing, layer_config, measure_group
from moepp.bench.measure import TOLERANCE, Variant, relative_error
from moepp.errors import BackendUnavailable

from ..tolerances import RELATIVE_TO_LARGEST


def case(benchmark: str = "experts", **changes: Any) -> Case:
    fields = {"size": "tiny", "config": layer_config("tiny"), "dtype": torch.float32, "device": "cpu", "tokens": 10}
    return Case(benchmark=benchmark, routing="synthetic", **(fields | changes))


def variant(name: str, run: Callable[[], Sequence[Tensor]], tau: float | None = None, **values: Any) -> Variant:
    bound = values.pop("bound", None)
    return Variant(row=case().row(name, "forward", tau=tau, bound=bound), run=run, truth="it", **values)


def ones() -> list[Tensor]:
    return [torch.ones(3)]


def by_name(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.variant: row for row in rows}


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What each variant is made to take, by key; interleaving is not this file's subject."""
    chosen: dict[str, float] = {}

    def fake(variants: Mapping[str, object], **_: object) -> dict[str, Timing]:
        return {key: Timing(chosen.get(key, 1.0), 0.1, (chosen.get(key, 1.0),) * 5) for key in variants}

    monkeypatch.setattr("moepp.bench.measure.interleave", fake)
    monkeypatch.setattr("moepp.bench.measure.dense_products", lambda *_: {"slow": ones, "fast": ones})
    monkeypatch.setattr("moepp.bench.measure.dense_flops", lambda *_: 1000.0)
    chosen.update({"peak:slow": 4.0, "peak:fast": 2.0})  # a peak of 500 FLOP/s
    return chosen


def test_a_row_holds_what_follows_from_the_medians(seconds: dict[str, float]) -> None:
    seconds |= {"vanilla:a@None": 8.0, "moepp:a@0.5": 5.0, "other@None": 16.0}
    group = Group(
        case(),
        [
            variant("vanilla:a", ones, flops=1000.0, over=["other@None", "not timed@None"], passes=2),
            variant("moepp:a", ones, tau=0.5, flops=500.0, twin="vanilla:a@None", bound=2.0),
            variant("other", ones, foreign=True),
        ],
        {"it": ones},
    )
    rows = by_name(measure_group(group, rounds=5, budget=None))
    vanilla, ours = rows["vanilla:a"], rows["moepp:a"]
    assert vanilla.median_s == 4.0  # of one of its two passes
    assert vanilla.tokens_per_s == 10 * 2 / 8.0
    assert vanilla.fraction_of_peak == 1000 / 8.0 / 500
    assert vanilla.speedup_over == {"other": 2.0}
    assert vanilla.fraction_of_bound is None
    assert ours.speedup_over == {"vanilla:a": 1.6}
    assert ours.fraction_of_bound == 1.6 / 2.0
    assert ours.max_relative_error == 0.0
    assert rows["peak:fast"].fraction_of_peak == 1.0
    assert rows["peak:slow"].fraction_of_peak == 0.5


def test_decoding_is_measured_against_reading_memory(
    seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moepp.bench.measure.READ_BYTES", 600)
    monkeypatch.setattr("moepp.bench.measure.memory_read", lambda _: ones)
    seconds |= {"peak:read": 2.0, "v@None": 4.0}  # 300 bytes a second
    rows = by_name(
        measure_group(
            Group(case(), [variant("v", ones, touched_bytes=240)], {"it": ones}, read=True), rounds=5, budget=None
        )
    )
    assert rows["v"].fraction_of_bandwidth == pytest.approx(240 / 4 / 300)
    assert rows["peak:read"].median_s == 2.0


def test_a_wrong_variant_is_reported_as_wrong_and_not_timed(seconds: dict[str, float]) -> None:
    off = variant("off", lambda: [torch.tensor([1.0, 1.0, 1.01])])
    lost = variant("lost", lambda: [torch.tensor([1.0, 1.0, float("nan")])])
    rows = by_name(
        measure_group(Group(case(), [off, lost, variant("fine", ones)], {"it": ones}), rounds=5, budget=None)
    )
    assert rows["off"].max_relative_error == pytest.approx(0.01, rel=1e-3)
    assert "wrong" in (rows["off"].reason or "")
    assert rows["lost"].max_relative_error is None  # JSON knows no infinity
    for name in ("off", "lost"):
        assert rows[name].median_s is rows[name].tokens_per_s is rows[name].fraction_of_peak is None
        assert rows[name].speedup_over == {}
    assert rows["fine"].median_s == 1.0


def test_nothing_is_timed_before_all_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def spy(name: str) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            checked.append(name)
            return ones()

        return run

    def fake(variants: Mapping[str, object], **_: object) -> dict[str, Timing]:
        assert checked == ["a", "b"]
        return {key: Timing(1.0, 0.0, (1.0,) * 5) for key in variants}

    monkeypatch.setattr("moepp.bench.measure.interleave", fake)
    measure_group(Group(case(), [variant("a", spy("a")), variant("b", spy("b"))], {"it": ones}), rounds=5, budget=None)


def test_a_backend_or_peer_that_fails_is_named_with_the_reason_and_our_own_errors_are_not_hidden(
    seconds: dict[str, float],
) -> None:
    def unavailable() -> list[Tensor]:
        raise BackendUnavailable("backend='x' cannot run here: no reason")

    def broken() -> list[Tensor]:
        raise ImportError("no such kernel\nand more")

    group = Group(case(), [variant("ours", unavailable), variant("peer", broken, foreign=True)], {"it": ones})
    rows = by_name(measure_group(group, rounds=5, budget=None))
    assert rows["ours"].reason == "backend='x' cannot run here: no reason"
    assert rows["peer"].reason == "ImportError: no such kernel"
    assert rows["ours"].median_s is None
    with pytest.raises(ImportError):
        measure_group(replace(group, variants=[variant("ours", broken)]), rounds=5, budget=None)


def test_a_peer_too_slow_for_the_budget_is_left_out_with_the_reason(
    seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moepp.bench.measure._seconds", lambda _: 3.0)
    variants = [variant("peer", ones, foreign=True), variant("ours", ones)]
    rows = by_name(measure_group(Group(case(), variants, {"it": ones}), rounds=5, budget=10.0))
    assert "too slow" in (rows["peer"].reason or "")
    assert rows["ours"].median_s is not None


def test_errors_are_relative_to_the_largest_element_of_each_tensor() -> None:
    expected = [torch.tensor([100.0, 0.0]), torch.tensor([1.0])]
    assert relative_error([torch.tensor([100.0, 1.0]), torch.tensor([1.0])], expected) == pytest.approx(0.01)
    assert relative_error([torch.tensor([100.0, 0.0]), torch.tensor([0.5])], expected) == pytest.approx(0.5)


def test_equal_means_the_same_as_in_the_tests() -> None:
    assert TOLERANCE == RELATIVE_TO_LARGEST
