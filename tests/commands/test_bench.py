"""``moepp bench``: what it writes, and one line for every mistake, found before anything is measured."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import typer

from moepp import cli
from moepp.bench import PEERS, Case, Results, Row, Step, layer_config
from moepp.bench.work import capture_work
from moepp.commands import bench as bench_command
from moepp.commands import gpu_bench
from moepp.commands.bench import Options, plan, run_bench
from moepp.data import train_tokenizer
from moepp.errors import ConfigError, MoEPPError
from moepp.model import MoEPPForCausalLM, preset

ROOT = Path(__file__).parents[2]
FIELDS = {
    *("benchmark", "variant", "pass", "size", "dtype", "device", "threads", "tokens", "tau", "routing"),
    *("median_s", "iqr_s", "tokens_per_s", "fraction_of_peak", "speedup_over", "bound", "fraction_of_bound"),
    "max_relative_error",
}


def options_of(line: str) -> Options:
    """What the real command line makes of ``moepp bench …``."""
    program, command, name, *arguments = shlex.split(line)
    assert (program, command) == ("moepp", "bench")
    group: Any = typer.main.get_command(cli.app)
    benchmark: click.Command = group.commands["bench"].commands[name]
    return Options(benchmark=name, **benchmark.make_context(name, arguments).params)


def run_tiny(benchmark: str, **changes: Any) -> None:
    run_bench(
        Options(**({"benchmark": benchmark, "sizes": "tiny", "tokens": "32", "rounds": 5, "seconds": 5.0} | changes))
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models in a folder as the demo leaves it; not really trained."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["def main(args):\n    return 0\n"] * 20, 300)
    for name in ("moepp", "vanilla"):
        torch.manual_seed(1)
        config = preset("debug", vocab_size=len(tokenizer), tau=0.5, vanilla=name == "vanilla")
        MoEPPForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def test_json_holds_machine_versions_command_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["moepp", "bench", "layer", "--sizes", "tiny"])
    run_tiny("layer", json=tmp_path / "out.json", tau="0.5,1", tokens="16,32")
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["command"] == "moepp bench layer --sizes tiny"
    assert content["machine"]["processor"]
    assert content["versions"]["torch"] == torch.__version__
    assert all(set(row) >= FIELDS for row in content["rows"])
    measured = {(row["variant"], row["tau"], row["tokens"]) for row in content["rows"] if row["variant"][:4] != "peak"}
    assert measured == {
        (v, t, n) for v, t in (("vanilla:auto", None), ("moepp:auto", 0.5), ("moepp:auto", 1.0)) for n in (16, 32)
    }
    (ours,) = [row for row in content["rows"] if (row["tau"], row["tokens"]) == (0.5, 32)]
    assert ours["pass"] == "forward"
    assert ours["fraction_of_bound"] == pytest.approx(ours["speedup_over"]["vanilla:auto"] / ours["bound"])
    shown = capsys.readouterr().out
    assert "layer tiny float32 T=16" in shown
    assert "vanilla:auto" in shown


def test_what_was_measured_is_kept_when_a_later_case_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = bench_command.run_step, []

    def once(*args: Any, **kwargs: Any) -> list[Row]:
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(bench_command, "run_step", once)
    with pytest.raises(KeyboardInterrupt):
        run_tiny("layer", json=tmp_path / "out.json", tau="1", tokens="8,16")
    assert {row.tokens for row in Results.read(tmp_path / "out.json").rows if row.tau} == {8}


def test_learned_routing_is_the_models_own(trained: Path, tmp_path: Path) -> None:
    run_tiny("experts", routing="learned", model=trained, peers="grouped_mm", json=tmp_path / "out.json", tokens="64")
    rows = {row.variant: row for row in Results.read(tmp_path / "out.json").rows}
    ours, twin = rows["moepp:auto"], rows["vanilla:auto"]
    assert ours.routing == twin.routing == "learned"
    assert ours.tau == 0.5
    assert ours.size == trained.name
    model = MoEPPForCausalLM.from_pretrained(trained / "moepp")
    work = plan(Options(benchmark="experts", routing="learned", model=trained))[0].learned
    assert work is not None
    found = work.work(64, dtype=torch.float32, device="cpu")
    assert len(found[0.5]) == len(found[None]) == 2
    assert ours.bound == pytest.approx(2 * 64 * 2 / sum(item.ffn_assignments for item in found[0.5]))
    again = capture_work(model, input_ids=torch.zeros(1, 4, dtype=torch.long))
    assert [item.layer.config for item in again] == [item.layer.config for item in found[0.5]]


@pytest.mark.parametrize("benchmark", ["layer", "train"])
def test_a_model_without_a_trained_twin_is_compared_with_an_even_one(
    benchmark: str, trained: Path, tmp_path: Path
) -> None:
    run_tiny(benchmark, routing="learned", model=trained / "moepp", peers="none", json=tmp_path / "out.json")
    rows = {row.variant: row for row in Results.read(tmp_path / "out.json").rows}
    assert rows["moepp:auto"].fraction_of_bound is not None
    assert rows["vanilla:auto"].max_relative_error is not None


@pytest.mark.parametrize("benchmark", ["experts", "router"])
def test_the_papers_tables_have_all_their_lines(
    benchmark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_command, "PAPER_SIZE", "tiny")
    run_tiny(benchmark, paper=True, json=tmp_path / "out.json")
    rows = {row.variant: row for row in Results.read(tmp_path / "out.json").rows}
    lines = {
        "experts": {"type:zero", "type:copy", "type:constant", "type:ffn"},
        "router": {"router:plain", "router:residual"},
    }
    assert {name for name in rows if not name.startswith("peak:")} == lines[benchmark]
    assert all(row.median_s and row.tokens == 2048 for row in rows.values())
    flops = {name: rows[name].flops for name in lines[benchmark] if name.startswith("router:")}
    assert flops == ({} if benchmark == "experts" else {"router:plain": 2048 * 16 * 64, "router:residual": flops_b(64)})


def flops_b(hidden: int) -> int:
    """One for a multiply-add, with W^g (16 x 16) and the sum of both terms."""
    return 2048 * 16 * (hidden + 16 + 1)


@pytest.mark.parametrize("benchmark", ["experts", "router"])
def test_a_wrong_line_of_the_papers_tables_is_not_timed(
    benchmark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_command, "PAPER_SIZE", "tiny")
    errors = iter([0.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    order = {"experts": "relative_error", "router": "router_error"}
    monkeypatch.setattr(f"moepp.bench.paper.{order[benchmark]}", lambda *_: next(errors))
    run_tiny(benchmark, paper=True, json=tmp_path / "out.json")
    rows = [row for row in Results.read(tmp_path / "out.json").rows if not row.variant.startswith("peak:")]
    wrong = rows[1]
    assert "wrong: off by 5.0e-01" in wrong.reason
    assert wrong.median_s is None
    assert all(row.median_s for row in rows if row is not wrong)


def test_the_papers_tables_are_of_the_papers_layer() -> None:
    (step,) = plan(Options(benchmark="router", paper=True))
    assert (step.case.config.hidden_size, step.case.tokens) == (1536, 2048)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": "0.6c"}, r"--sizes=0\.6c does not exist; did you mean '0\.6b'\?"),
        ({"tau": "0"}, r"--tau=0 is outside \(0, 1\]"),
        ({"tau": "0.5,1.5"}, r"--tau=1\.5 is outside \(0, 1\]"),
        ({"tau": "nan"}, r"--tau=nan is outside \(0, 1\]"),
        ({"tau": ""}, r"--tau='' names nothing"),
        ({"tokens": "0"}, r"--tokens=0 must be a whole number of at least 1"),
        ({"tokens": "1e3"}, r"--tokens=1e3 must be a whole number"),
        ({"dtype": "bf16"}, r"--dtype=bf16 does not exist; choose one of|did you mean 'bfloat16'"),
        ({"device": "gpu"}, r"--device=gpu does not exist; use cpu or cuda"),
        ({"device": "meta"}, r"--device=meta is not supported"),
        ({"peers": "grouped"}, r"--peers=grouped does not exist; did you mean 'grouped_mm'\?"),
        ({"backends": "refrence"}, r"backend='refrence' does not exist; did you mean 'reference'\?"),
        ({"rounds": 4}, r"--rounds=4 is too few"),
        ({"seconds": 0.0}, r"--seconds=0 must be more than 0"),
        ({"routing": "leaned"}, r"--routing=leaned does not exist; did you mean 'learned'\?"),
        ({"routing": "learned"}, r"--routing=learned needs a trained model; give --model"),
        ({"model": Path("x")}, r"--model is for --routing=learned"),
        ({"routing": "learned", "model": Path("nowhere")}, r"--model='nowhere' holds no model"),
        ({"routing": "learned", "model": Path("x"), "benchmark": "decode"}, r"learned is for the benchmarks experts"),
        ({"benchmark": "layer", "paper": True}, r"--paper is of the benchmarks 'experts' and 'router'"),
        ({"benchmark": "router", "tau": "none"}, r"--tau=none leaves nothing to measure"),
        ({"json": Path("no/such/folder/out.json")}, r"--json='no/such/folder/out\.json' cannot be written"),
        ({"json": Path(".")}, r"--json='\.' cannot be written: Is a directory"),
    ],
)
def test_a_mistake_is_found_before_anything_is_measured(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> list[Row]:
        raise AssertionError("measured")

    monkeypatch.setattr(bench_command, "run_step", never)
    with pytest.raises(MoEPPError, match=message):
        run_bench(Options(**({"benchmark": "experts", "sizes": "tiny"} | changes)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["moepp", "bench", "layer", "--device", "cuda"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert re.fullmatch(r"error: --device=cuda needs a CUDA GPU .*\n", capsys.readouterr().err)


def test_a_path_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    bench_command.require_writable("--json", tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()
    (tmp_path / "old.json").write_text("kept")
    bench_command.require_writable("--json", tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "kept"


def test_the_commands_of_make_bench_are_valid() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = re.findall(r"\$\(BIN\)/(moepp bench (?!report|model).*)", makefile)
    assert len(lines) >= 5
    for line in lines:
        untrained = line.replace("--routing learned --model runs/demo ", "")  # the demo's models need not be here
        assert plan(options_of(untrained.replace("$(RESULTS)", "benchmarks/results")))


def test_decoding_is_of_few_tokens_unless_told() -> None:
    assert [step.case.tokens for step in plan(Options(benchmark="decode"))] == [1, 2, 4, 8]
    assert [step.case.tokens for step in plan(Options(benchmark="layer"))] == [2048]


# make gpu


def test_the_gpus_plan_begins_with_what_the_targets_speak_of_and_has_every_case() -> None:
    steps = gpu_bench.plan()
    first = [(step.case.benchmark, step.case.size, step.case.tokens) for step in steps[:8]]
    benchmarks = ("layer", "experts", "train", "router")
    assert first == [(b, size, 8192) for size in ("7b", "0.6b") for b in benchmarks]
    cases = {(step.case.size, step.case.tokens) for step in steps}
    assert len(cases) == 16
    assert {tokens for _, tokens in cases} >= {2048, 65536}
    assert all(set(step.peers) == set(PEERS) for step in steps if step.case.benchmark in ("experts", "train"))
    assert all(step.taus == gpu_bench.TAUS for step in steps if step.case.benchmark == "layer")


def test_the_gpus_plan_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all("triton" in step.backends for step in gpu_bench.plan())
    steps = gpu_bench.plan(("tiny",), (16,), "cpu", ("auto",))  # interpreted, Triton would take minutes
    rows: list[Row] = []
    assert gpu_bench.run_plan(steps, 20.0, lambda _, found: rows.extend(found)) == []
    assert {row.benchmark for row in rows} == {"layer", "experts", "train", "router"}
    assert any(row.fraction_of_bound for row in rows)


def test_time_that_is_over_leaves_the_rest_unmeasured_and_no_step_eats_anothers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budgets: list[float] = []
    now = 0.0

    def slow(step: object, layers: object, *, rounds: int, budget: float) -> list[Row]:
        nonlocal now
        budgets.append(budget)
        now += 40.0
        return []

    monkeypatch.setattr(gpu_bench, "run_step", slow)
    steps = gpu_bench.plan(("tiny",), (16, 32, 64), "cpu")
    left = gpu_bench.run_plan(steps, 100.0, lambda *_: None, clock=lambda: now)
    assert len(budgets) == 3
    assert left == [(step, "no time left") for step in steps[3:]]
    assert all(1.0 <= budget <= 10.0 for budget in budgets)


def test_a_step_without_memory_is_named_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = gpu_bench.plan(("tiny",), (16,), "cpu")

    def run(step: Step, *_: object, **__: object) -> list[Row]:
        if step is steps[0]:
            raise torch.OutOfMemoryError("out of memory\nand a table")
        return []

    monkeypatch.setattr(gpu_bench, "run_step", run)
    done: list[Step] = []
    assert gpu_bench.run_plan(steps, 100.0, lambda step, _: done.append(step)) == [(steps[0], "out of memory")]
    assert done == steps[1:]


def test_a_case_says_its_dtype_as_torch_does() -> None:
    case = Case(
        benchmark="layer",
        size="tiny",
        config=layer_config("tiny"),
        dtype=torch.bfloat16,
        device="cpu",
        tokens=1,
        routing="synthetic",
    )
    row = case.row("v", "forward")
    assert (row.dtype, row.threads) == ("bfloat16", torch.get_num_threads())


def test_results_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"rows": [{"benchmark": 1}]}')
    with pytest.raises(MoEPPError, match="holds no benchmark results"):
        Results.read(tmp_path / "x.json")
    with pytest.raises(ConfigError):
        layer_config("")
