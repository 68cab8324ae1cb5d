"""``moepp bench comm``: what it writes, and one line for every mistake, found before anything is measured."""

from pathlib import Path

import pytest

from moepp.bench import CommResults, Link
from moepp.commands import bench_comm
from moepp.commands.bench_comm import Options, plan, run_bench_comm
from moepp.errors import ConfigError

from ..bench.test_comm_page import SWEEP, row


def test_every_size_is_measured_with_every_number_of_processes_over_every_link() -> None:
    cases, links = plan(Options(sizes="tiny,0.6b", processes="2,4", bandwidth="25,unlimited", latency="0,5"))
    assert [(case.size, case.processes) for case in cases] == [("tiny", 2), ("tiny", 4), ("0.6b", 2), ("0.6b", 4)]
    assert links == [Link(25.0, 0.0), Link(None, 0.0), Link(25.0, 5.0), Link(None, 5.0)]
    assert plan(Options())[1] == [None]


def test_what_a_fresh_router_chooses_does_not_depend_on_tau() -> None:
    [case], _ = plan(Options(routing="untrained"))
    assert case.taus == [0.75]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": "2"}, r"--tau=2 is outside \(0, 1\]"),
        ({"tau": "none"}, r"--tau=none leaves the vanilla twin alone; give a value like 0\.75"),
        ({"sizes": "0.7b"}, r"--sizes=0\.7b does not exist; did you mean '0\.6b'\?"),
        ({"processes": "3"}, r"--processes=3 does not divide the 8 FFN experts of --sizes=0\.6b; choose a divisor"),
        ({"processes": "1"}, r"--processes=1 must be a whole number from 2 to 64"),
        ({"tokens": "0"}, r"--tokens=0 must be a whole number of at least 1"),
        ({"bandwidth": "fast"}, r"--bandwidth=fast must be a number of Mbit/s from 1 to 1000000, unlimited, or none"),
        ({"bandwidth": "0"}, r"--bandwidth=0 must be a number of Mbit/s"),
        ({"bandwidth": "10", "latency": "-1"}, r"--latency=-1 must be a number of milliseconds from 0 to 1000000"),
        ({"latency": "5"}, r"--latency=5 is added to a link; give --bandwidth, too, e\.g\. unlimited"),
        ({"routing": "learned"}, r"--routing=learned does not exist; choose one of synthetic, untrained"),
        ({"rounds": 4}, r"--rounds=4 is too few for quartiles; use at least 5"),
        ({"seconds": 0.0}, r"--seconds=0 must be more than 0"),
        ({"json": Path("/nowhere/x.json")}, r"--json='/nowhere/x\.json' cannot be written"),
    ],
)
def test_a_mistake_is_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_bench_comm(Options(**options))  # pyright: ignore[reportArgumentType]


def test_rows_are_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_comm, "measure_comm", lambda case, links, say: SWEEP[:2])
    file = tmp_path / "comm.json"
    run_bench_comm(Options(bandwidth="25", json=file))
    assert list(CommResults.read(file).rows) == SWEEP[:2]
    line = next(line for line in capsys.readouterr().out.splitlines() if "tau 0.75" in line)
    assert " ".join(line.split()) == "tau 0.75 100 ms ± 5% 40 ms 60 ms 1 1.05 1.50 ± 0.10"


def test_links_that_cannot_be_made_are_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skipped = row(None, 25.0, reason="a network namespace cannot be made: Operation not permitted", step_s=None)
    monkeypatch.setattr(bench_comm, "measure_comm", lambda case, links, say: [skipped])
    run_bench_comm(Options(bandwidth="25"))
    assert "25 Mbit/s: skipped: a network namespace cannot be made: Operation not permitted" in capsys.readouterr().out
