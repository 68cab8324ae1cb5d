"""``docs/performance.md``: what it says follows from the result files and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from moepp.bench import Results, Row, layer_config, machines, read_results, report
from moepp.bench.paper import FLOPS
from moepp.bench.router import router_flops
from moepp.bench.targets import CPU_TARGETS, GPU_TARGETS
from moepp.commands.bench_report import run_report
from moepp.errors import DataError
from moepp.layers import Router

ROOT = Path(__file__).parents[2]


def row(benchmark: str = "experts", variant: str = "vanilla:auto", **values: object) -> Row:
    fields: dict[str, object] = {"size": "0.6b", "dtype": "float32", "device": "cpu", "threads": 2, "tokens": 2048}
    fields |= {"routing": "synthetic", "median_s": 0.5, "iqr_s": 0.01, "tokens_per_s": 4096.0}
    return Row(benchmark=benchmark, variant=variant, pass_="forward", **(fields | values))  # pyright: ignore[reportArgumentType]


def results(*rows: Row, command: str = "moepp bench experts", gpu: str | None = None) -> Results:
    return Results({"processor": "Some CPU", "cores": 2, "gpu": gpu}, {"moepp": "1.2"}, command, rows)


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    page = ROOT / "docs" / "performance.md"
    assert page.read_text(encoding="utf-8") == report(read_results(ROOT / "benchmarks" / "results"))


def test_a_target_is_met_when_the_worst_of_its_rows_meets_it() -> None:
    good, bad = row(fraction_of_peak=0.9, tokens=2048), row(fraction_of_peak=0.7, tokens=8192)
    name = "| forward, 0.6b, float32: fraction of the dense peak | T = 2048, 8192 |"
    assert line_of(report([results(good)]), name).endswith("| 0.90 (0.6b, float32, T = 2048) | met |")
    line = line_of(report([results(good, bad)]), name)
    assert "0.70 (0.6b, float32, T = 8192) … 0.90" in line
    assert line.endswith("| missed in 1 of 2 |")


def test_a_target_of_a_share_is_met_from_below() -> None:
    name = "| router and zero-computation experts' share of the layer, tau 0.75 | T = 2048, 8192 |"
    for share, verdict in ((0.03, "met"), (0.05, "missed in 1 of 1")):
        one = row("router", "moepp:router+zero:auto", tau=0.75, share_of_layer=share)
        assert line_of(report([results(one)]), name).endswith(f"| {verdict} |")


@pytest.mark.parametrize(
    "other",
    [{"tokens": 256}, {"size": "7b"}, {"dtype": "bfloat16"}, {"routing": "learned"}, {"variant": "vanilla:grouped"}],
)
def test_other_rows_are_not_the_targets_affair(other: dict[str, object]) -> None:
    target = next(t for t in CPU_TARGETS if t.tokens.about(2048) and t.dtype == "float32" and t.benchmark == "experts")
    assert target.values([row(fraction_of_peak=0.9)])
    assert target.values([row(**({"fraction_of_peak": 0.9} | other))]) == []


def test_the_best_peer_is_the_one_that_is_hardest_to_beat() -> None:
    target = next(t for t in GPU_TARGETS if t.text == "vanilla forward: over the best importable peer")
    one = row(tokens=8192, dtype="bfloat16", speedup_over={"transformers:grouped_mm": 1.3, "scattermoe": 0.9})
    assert [value for value, _ in target.values([one])] == [0.9]


def test_where_nothing_was_measured_the_page_says_so() -> None:
    text = report([results(row())])
    assert "## GPU\n\nNot measured" in text
    assert "## CPU\n\nNot measured" not in text
    assert "## CPU\n\nNot measured" in report([])


def test_a_machine_is_a_section_and_a_command_a_table() -> None:
    gpu = results(row(device="cuda", threads=None), command="make gpu", gpu="Some GPU")
    here = [results(row()), results(row(tokens=8192), command="moepp bench experts --tokens 8192"), gpu]
    assert [machine.title for machine in machines(here)] == ["Some CPU, 2 threads", "Some GPU"]
    text = report(here)
    assert text.index("## Some CPU, 2 threads") < text.index("## Some GPU")
    for command in ("moepp bench experts", "moepp bench experts --tokens 8192", "make gpu"):
        assert f"```console\n{command}\n```" in text


def test_what_was_not_measured_is_named_with_its_reason_and_no_number() -> None:
    text = report([results(row(), row(variant="scattermoe", median_s=None, iqr_s=None, reason="no GPU"))])
    assert "- scattermoe: no GPU" in text
    assert "| scattermoe |" not in text


def test_columns_without_a_value_are_left_out() -> None:
    text = report([results(row(speedup_over={"transformers:grouped_mm": 1.25}))])
    assert "| variant | T | time | tokens/s | over grouped_mm |" in text
    assert "| vanilla:auto | 2048 | 500 ms ± 1% | 4,096 | 1.25× |" in text


def test_every_ratio_has_its_column_and_whole_models_their_pass() -> None:
    one = row(
        "model", "moepp", speedup_over={"vanilla:auto": 1.2, "transformers:mixtral": 1.5}, peak_memory_bytes=2**30
    )
    text = report([results(one)])
    assert "| variant | pass | T | time | tokens/s | over vanilla | over mixtral | memory |" in text
    assert "| 1.20× | 1.50× | 1.00 GiB |" in text


def test_router_flops_are_those_of_the_papers_table_b() -> None:
    config = layer_config("7b")

    config = replace(config, num_constant_experts=0, num_copy_experts=0, num_zero_experts=0)
    assert router_flops(Router(config, first=True), 2048) == FLOPS["router:plain"]
    assert router_flops(Router(config), 2048) == FLOPS["router:residual"]


def test_rows_survive_their_file(tmp_path: Path) -> None:
    one = results(row(tau=0.5, speedup_over={"a": 2.0}), row(median_s=None, reason="why"))
    one.write(tmp_path / "x.json")
    assert Results.read(tmp_path / "x.json") == Results(one.machine, one.versions, one.command, list(one.rows))


def test_the_command_writes_page_and_plots(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    layer = row("layer", "moepp:auto", tau=0.5, fraction_of_bound=0.9)
    results(row(fraction_of_peak=0.8), layer).write(folder / "x.json")
    run_report(folder, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page == report(read_results(folder))
    for kind in ("bound", "peers"):
        name = f"images/performance-some-cpu-2-threads-{kind}.png"
        assert f"]({name})" in page
        assert (tmp_path / name).stat().st_size > 1000


def test_a_page_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder with results"):
        run_report(tmp_path / "nowhere", tmp_path / "page.md")
    with pytest.raises(DataError, match=r"has no \.json file"):
        run_report(tmp_path, tmp_path / "page.md")
