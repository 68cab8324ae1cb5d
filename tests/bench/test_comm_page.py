"""``docs/communication.md``: what was measured, and where nothing was gained."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from moepp.bench import FOLDER, CommResults, CommRow, comm_page, read_comm
from moepp.bench.comm_page import modelled_step, picture, plotted
from moepp.bench.plots import write_comm_plots
from moepp.commands.bench_report import run_report
from moepp.errors import DataError

ROOT = Path(__file__).parents[2]


def row(tau: float | None, bandwidth: float | None, **values: Any) -> CommRow:
    fields: dict[str, Any] = {
        "variant": "vanilla" if tau is None else "moepp",
        "tau": tau,
        "size": "0.6b",
        "dtype": "float32",
        "processes": 2,
        "threads": 1,
        "tokens": 128,
        "routing": "synthetic",
        "seed": 0,
        "linked": True,
        "bandwidth_mbit": bandwidth,
        "rounds": 5,
        "step_s": 0.1,
        "step_iqr_s": 0.01,
        "exchange_s": 0.04,
        "compute_s": 0.06,
        "gain": 1.0 if tau is None else 1.5,
        "gain_iqr": 0.0 if tau is None else 0.2,
        "pairs": 256.0,
        "payload_bytes": 1e6,
        "wire_bytes": 1.05e6,
        "small_exchange_s": 1e-4,
    }
    return CommRow(**(fields | values))


def results(*rows: CommRow) -> CommResults:
    machine = {"processor": "A", "cores": 2, "gpu": None, "torch": "2"}
    return CommResults(machine, {"moepp": "0"}, "moepp bench comm", rows)


SWEEP = [row(tau, bandwidth) for bandwidth in (25.0, 100.0, None) for tau in (None, 0.75)]


def test_the_page_is_what_the_results_say() -> None:
    page = ROOT / "docs" / f"{FOLDER}.md"
    found = read_comm(ROOT / "benchmarks" / "results" / FOLDER)
    assert page.read_text(encoding="utf-8") == comm_page(found)
    for name, one in found.items():
        assert (ROOT / "docs" / "images" / picture(name)).exists() == bool(plotted(one))


def test_a_table_gives_times_bytes_and_gain() -> None:
    text = comm_page({"link": results(*SWEEP)})
    assert "**0.6b, 2 processes, 128 tokens each, synthetic routing: 25 Mbit/s**" in text
    assert "| tau 0.75 | 100 ms ± 5% | 40 ms | 60 ms | 1 | 1.05 | 1.50 ± 0.10 |" in text
    assert "An exchange of one number took 100 µs." in text


def test_gains_stand_by_tau_and_bandwidth() -> None:
    text = comm_page({"link": results(*SWEEP)})
    assert "| tau | of vanilla's pairs | 25 Mbit/s | 100 Mbit/s | no limit |" in text
    assert "| 0.75 | 100.0% | 1.50× ± 0.10 | 1.50× ± 0.10 | 1.50× ± 0.10 |" in text


def test_where_nothing_is_gained_is_listed() -> None:
    assert "Nowhere in these measurements." in comm_page({"link": results(*SWEEP)})
    doubtful, slower = row(0.75, 25.0, gain=1.05, gain_iqr=0.2), row(1.0, 25.0, gain=0.97)
    text = comm_page({"link": results(doubtful, slower)})
    assert "25 Mbit/s, tau 0.75: 1.05 ± 0.10" in text
    assert "25 Mbit/s, tau 1: 0.97 ± 0.10" in text


def test_what_was_skipped_gives_its_reason() -> None:
    none = dict.fromkeys(("step_s", "step_iqr_s", "gain", "small_exchange_s", "rounds"))
    text = comm_page({"link": results(row(None, 25.0, reason="Operation not permitted", **none))})
    assert "Skipped: Operation not permitted." in text


def test_the_model_adds_what_the_link_takes() -> None:
    free = row(None, None, step_s=0.1, payload_bytes=1e6)
    assert modelled_step(free, 100.0) == pytest.approx(0.1 + 2 * 8e6 / 100e6)


def test_plots_are_drawn_of_what_has_several_bandwidths(tmp_path: Path) -> None:
    local = [dataclasses.replace(one, linked=False, bandwidth_mbit=None) for one in SWEEP[:2]]
    written = write_comm_plots({"link": results(*SWEEP), "local": results(*local)}, tmp_path)
    assert written == [tmp_path / picture("link")]
    assert written[0].stat().st_size > 10_000


def test_the_report_writes_the_page_beside_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    (folder / FOLDER).mkdir(parents=True)
    (folder / "cpu.json").write_text((ROOT / "benchmarks" / "results" / "cpu-router.json").read_text())
    results(*SWEEP).write(folder / FOLDER / "link.json")
    run_report(folder, tmp_path / "performance.md")
    assert (tmp_path / f"{FOLDER}.md").read_text(encoding="utf-8") == comm_page({"link": results(*SWEEP)})
    assert (tmp_path / "images" / picture("link")).exists()
    (folder / FOLDER / "link.json").write_text('{"rows": [{}]}')
    with pytest.raises(DataError, match=r"link\.json holds no results of this benchmark: .*; write it with"):
        run_report(folder, tmp_path / "performance.md")
