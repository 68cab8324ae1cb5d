"""The benchmarks of one layer, on a tiny one: they compare what they say, at the routing they say."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from moepp.bench import PEERS, Case, Layers, Row, Step, layer_config, measure_group, run_step, spread_work, twin_layers
from moepp.bench import peers as peers_module
from moepp.bench.layers import layer_group
from moepp.bench.peers import Setting
from moepp.errors import ConfigError
from moepp.ops import BACKENDS

from ..tolerances import RELATIVE_TO_LARGEST

HERE = ("eager", "grouped_mm", "batched_mm", "longcat_flash")
TAUS = (0.25, 1.0)
ALL = ("auto", "int8", "int4")
COMPILED = [name for name in BACKENDS if name != "triton"]  # which is interpreted here, and takes minutes


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("peaks", "measure"):
        monkeypatch.setattr(f"moepp.bench.{module}.READ_BYTES", 2**20)
    monkeypatch.setattr("moepp.bench.plan.DECODED_BYTES", 2**20)


def case(benchmark: str, tokens: int = 64, dtype: torch.dtype = torch.float32) -> Case:
    config = layer_config("tiny")
    return Case(
        benchmark=benchmark,
        size="tiny",
        config=config,
        dtype=dtype,
        device="cpu",
        tokens=tokens,
        routing="synthetic",
    )


def rows_of(
    benchmark: str, backends: Sequence[str] = COMPILED, **changes: object
) -> dict[tuple[str, float | None], Row]:
    step = Step(case=replace(case(benchmark), **changes), taus=TAUS, backends=backends, peers=list(PEERS))
    rows = run_step(step, Layers(), rounds=5, budget=30.0)
    found = {(row.variant, row.tau): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("benchmark", ["experts", "layer", "decode", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_variant_is_right_and_measured_or_says_why_not(benchmark: str, dtype: torch.dtype) -> None:
    rows = rows_of(benchmark, dtype=dtype)
    for (variant, tau), row in rows.items():
        if variant.startswith("peak:"):
            continue
        if row.reason is None:
            assert row.median_s is not None, variant
            assert row.max_relative_error is not None, variant
            assert row.max_relative_error <= RELATIVE_TO_LARGEST[dtype], (variant, tau)
        else:
            assert "wrong" not in row.reason, (variant, row.reason)
            assert row.median_s is None
    for backend in ("auto", "grouped", "reference"):
        for tau in TAUS:
            assert rows[f"moepp:{backend}", tau].fraction_of_bound is not None
        assert rows[f"vanilla:{backend}", None].median_s is not None
    if benchmark != "layer":
        assert {f"transformers:{name}" for name in HERE} <= {v for v, tau in rows if rows[v, tau].median_s is not None}


def test_peers_are_compared_with_the_same_work_of_ours() -> None:
    experts = rows_of("experts", ["auto"])
    everybody = {f"transformers:{name}" for name in HERE}
    assert set(experts["vanilla:auto", None].speedup_over) == everybody
    # The one peer that knows experts without computation runs at MoE++'s own routing too.
    assert set(experts["moepp:auto", 0.25].speedup_over) == {"vanilla:auto", "transformers:longcat_flash"}
    for benchmark in ("train", "decode"):
        rows = rows_of(benchmark, ["auto"])
        assert set(rows["ffn:auto", None].speedup_over) == everybody
        assert rows["vanilla:auto", None].speedup_over == {}
        assert set(rows["moepp:auto", 0.25].speedup_over) == {"vanilla:auto"}


def test_decoding_with_quantised_experts_is_compared_with_full_ones_and_reads_fewer_bytes() -> None:
    rows = rows_of("decode", ["auto", "int8", "int4"], tokens=4, dtype=torch.bfloat16)
    assert set(rows["moepp:int4", 0.25].speedup_over) == {"vanilla:int4", "moepp:auto"}
    assert set(rows["vanilla:int8", None].speedup_over) == {"vanilla:auto"}
    assert not {"ffn:int8", "ffn:int4"} & {variant for variant, _ in rows}
    read = {name: (row := rows[f"vanilla:{name}", None]).fraction_of_bandwidth * row.median_s for name in ALL}
    assert read["int8"] / read["auto"] == pytest.approx(1 / 2)
    assert read["int4"] / read["auto"] == pytest.approx(5 / 16)
    error = {name: rows[f"vanilla:{name}", None].max_relative_error for name in ALL}
    assert error["auto"] < error["int8"] < error["int4"]


def test_bound_is_table_1s_at_the_routing_that_was_run() -> None:
    rows = rows_of("layer", ["auto"], tokens=7000)
    # 4 FFN experts at tau against 4 others: (4 tau + 4) / 4 tau.
    assert rows["moepp:auto", 0.25].bound == pytest.approx(5, rel=1e-3)
    assert rows["moepp:auto", 1.0].bound == pytest.approx(2, rel=1e-3)


def test_the_layer_follows_the_prescribed_routing_after_its_router_has_run() -> None:
    (layer,), (twin,) = twin_layers(layer_config("tiny"), 1, dtype=torch.float32, device="cpu")
    for one, tau in ((layer, 0.1), (twin, None)):
        (item,) = spread_work([one], tau, 50)
        y, routing = one(item.x, item.previous, edit=item._prescribe)
        assert torch.equal(routing.expert, item.routing.expert)
        assert torch.equal(routing.weight, routing.probs.gather(-1, item.routing.expert))
        assert not torch.equal(one(item.x, item.previous)[1].expert, item.routing.expert)
        assert torch.equal(item.forward(one, item.x), y)


def test_twins_share_the_experts_weights() -> None:
    (layer,), (twin,) = twin_layers(layer_config("tiny"), 1, dtype=torch.bfloat16, device="cpu")
    assert twin.experts.gate_up_proj is layer.experts.gate_up_proj
    assert twin.config == layer.config.vanilla()
    assert all(parameter.isfinite().all() for one in (layer, twin) for parameter in one.parameters())


def test_decoding_goes_through_several_layers_with_the_exact_share_in_all() -> None:
    layers, _ = twin_layers(layer_config("tiny"), 2, dtype=torch.float32, device="cpu")
    work = spread_work(layers, 0.25, 1, steps=100)
    assert [item.layer for item in work[:3]] == [layers[0], layers[1], layers[0]]
    assert sum(item.ffn_assignments for item in work) == 80  # a fifth of 400
    assert {item.ffn_assignments for item in work} == {0, 1}
    for item in work[:5]:
        touched = {int(e) for e in item.routing.expert.flatten() if e < 4}
        assert item.touched_weights == len(touched) * 3 * 64 * 128


def test_training_compares_all_gradients() -> None:
    (layer,), (twin,) = twin_layers(layer_config("tiny"), 1, dtype=torch.float32, device="cpu")
    works = {None: spread_work([twin], None, 32), 0.5: spread_work([layer], 0.5, 32)}
    group = layer_group(case("train", 32), works, ["grouped"], ["eager"])
    sizes = {variant.row.variant: len(variant.run()) for variant in group.variants}
    assert sizes["moepp:grouped"] == 2 + len(list(layer.parameters()))  # output, tokens
    assert sizes["vanilla:grouped"] == 2 + len(list(twin.parameters()))
    assert sizes["ffn:grouped"] == sizes["transformers:eager"] == 5  # output, tokens, routing weights, two projections
    with torch.no_grad():
        layer.experts.down_proj[0, 0, 0] += 1.0  # nothing is copied at the start
    assert all(row.reason is None for row in measure_group(group, rounds=5, budget=30.0))


def test_a_peer_is_refused_what_memory_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    (layer,), _ = twin_layers(layer_config("tiny"), 1, dtype=torch.float32, device="cpu")
    setting = Setting(layer.config, layer.experts.gate_up_proj, layer.experts.down_proj, 1024, backward=False)
    needed = 1024 * 2 * 3 * 64 * 128 * 4
    monkeypatch.setattr(peers_module, "_free_memory", lambda _: 3 * needed)
    assert PEERS["batched_mm"].why_not(setting) is None
    assert "GiB of weights" in (PEERS["batched_mm"].why_not(replace(setting, backward=True)) or "")
    assert "GiB of weights" in (PEERS["batched_mm"].why_not(replace(setting, tokens=1025)) or "")


def test_peers_of_gpus_say_that_they_need_one() -> None:
    rows = rows_of("experts", ["auto"])
    for name in ("sonicmoe", "scattermoe", "megablocks"):
        assert rows[PEERS[name].variant, None].reason == "runs on a CUDA GPU only"


def test_the_routers_share_is_of_the_layer_without_its_ffn_experts() -> None:
    rows = rows_of("router", ["auto", "reference"])
    for backend in ("auto", "reference"):
        share = rows[f"moepp:router+zero:{backend}", 0.25].share_of_layer
        assert share is not None
        assert 0 < share < 1
    for variant in ("moepp:router", "moepp:router-no-residual"):
        assert rows[variant, None].median_s is not None


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--sizes=0\.5b does not exist; did you mean '0\.6b'\?"):
        layer_config("0.5b")
