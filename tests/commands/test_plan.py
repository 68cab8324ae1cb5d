"""``moepp plan``: its tables, its dry run, and one line for each mistake."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from moepp import cli
from moepp.commands import plan_dry_run
from moepp.errors import ConfigError, MoEPPError
from moepp.model import account, preset

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
SMALL, LARGE = PAPER / "moepp-0.6b-8+4.yaml", PAPER / "moepp-7b-16+4-strategy-1.yaml"
TINY = ["model={num_hidden_layers: 2, hidden_size: 64, intermediate_size: 96, num_attention_heads: 4}"]

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What ``moepp plan`` prints in a wide terminal."""

    def run(*arguments: str | Path) -> str:
        monkeypatch.setenv("COLUMNS", "160")
        cli.app(["plan", *map(str, arguments)], standalone_mode=False)
        return capsys.readouterr().out

    return run


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"[│┃]", line.strip("│┃ \n"))]


def test_a_plan_shows_what_is_exact_and_what_is_modelled(run: Run) -> None:
    shown = run(SMALL, *TINY)
    rows = {cells(line)[0]: cells(line) for line in shown.splitlines() if line.startswith("│")}
    for name in ("weights", "gradients", "optimizer", "whole gradients", "gathered weights", "reduced gradients"):
        assert rows[name][2] == "exact"
    for name in ("activations", "logits", "gathered layers", "computing", "one step", "the run"):
        assert rows[name][2] == "model"
    assert rows["memory of one GPU"][2:] == ["fits", "72.00 GiB of 80.00 GiB may be used"]
    assert rows["the run"][3] == "23842 steps, 100.00 B tokens"


def test_the_table_marks_the_recipes_sizes_among_all(run: Run) -> None:
    shown = run(SMALL, *TINY)
    table = [line.split() for line in shown.splitlines() if re.match(r"\s*[›×]*\s+\d+\s+\d+\s+\d+ ", line)]
    assert len(table) == 6 + 5 + 4 + 3  # fsdp of 32 GPUs for ep 1, 2, 4 and 8 of the 8 FFN experts
    assert [row[1:4] for row in table if row[0] == "›"] == [["8", "1", "4"]]


def test_other_gpus_than_the_recipes_get_the_best_sizes(run: Run) -> None:
    shown = run(SMALL, *TINY, "--gpus", "4", "--gpus-per-node", "2", "--gpu-memory", "16GiB")
    assert "on 4 GPUs in 2 nodes" in shown
    assert "These are the best sizes: the recipe's own are for 32 GPUs, not 4." in shown
    assert "14.40 GiB of 16.00 GiB may be used" in shown


def test_what_does_not_fit_is_said(run: Run) -> None:
    assert "too much" in run(SMALL, *TINY, "--gpu-memory", "1M")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu-memory", "80X"], r"^--gpu-memory='80X' is not an amount that works here; write it as 80G$"),
        (["--gpu-memory", "-1G"], r"^--gpu-memory='-1G' is not an amount that works here; write it as 80G$"),
        (["--bandwidth", "25G"], r"^--bandwidth='25G' is not an amount that works here; write it as 25GB/s$"),
        (["--bandwidth", "0GB/s"], r"^--bandwidth='0GB/s' is not an amount"),
        (
            ["--node-bandwidth", "fast"],
            r"^--node-bandwidth='fast' is not an amount .* write it as 300GB/s$",
        ),
        (["--peak", "312GB/s"], r"^--peak='312GB/s' is not an amount that works here; write it as 312TF$"),
        (["--utilisation", "1.5"], r"^--utilisation=1\.5 must be above 0 and at most 1; 0\.4 is usual$"),
        (["--gpus", "0"], r"^--gpus=0 must be at least 1$"),
        (["--gpus-per-node", "0"], r"^--gpus-per-node=0 must be at least 1$"),
        (["--gpus", "24"], r"^training\.gradient_accumulation_steps=256, .* is not a multiple of 24 GPUs; choose"),
        (["distributed.ep_size=3"], r"^distributed\.ep_size=3 does not divide distributed\.fsdp_size=8"),
        (["model.num_ffn_experts=6", "distributed.ep_size=4"], r"^distributed\.ep_size=4 does not divide model\."),
        (
            ["distributed.fsdp_size=null", "distributed.replicate_size=3", "--gpus", "8"],
            r"^distributed\.replicate_size=3",
        ),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        run(SMALL, *arguments)
    assert "\n" not in str(error.value)


def test_a_vocabulary_that_only_the_tokenizer_knows_is_asked_for(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("output_dir: x\ntraining: {max_steps: 9}\ntokenizer: {path: some/where}\nmodel: {hidden_size: 48}")
    with pytest.raises(ConfigError, match=r"^model\.vocab_size is not in the recipe, and a plan loads no tok"):
        run(path)
    assert "on 1 GPU in 1 node" in run(path, "model.vocab_size=100")
    assert "on 1 GPU in 1 node" in run(path, "tokenizer.path=null")


@pytest.mark.parametrize(
    ("sizes", "row"),
    [
        (["distributed.ep_size=8"], r"experts\.gate_up_proj +24 +16 × 8192 × 1536 +2 × 8192 × 1536 .* efsdp 1, ep 8$"),
        (["distributed.fsdp_size=32", "distributed.replicate_size=1"], r"gate_up_proj .* 1 × 8192 × 1536 .* fsdp 32$"),
        (
            ["distributed.fsdp_size=16", "distributed.replicate_size=2", "distributed.ep_size=2"],
            r"gate_up_proj .* 1 × 8192 × 1536 .* efsdp 8, ep 2$",
        ),
    ],
    ids=["ep", "fsdp", "both"],
)
def test_the_7b_model_of_32_ranks_is_built_as_planned(run: Run, sizes: list[str], row: str) -> None:
    shown = run(LARGE, "--dry-run", *sizes)
    lines = [line.rstrip() for line in shown.splitlines()]
    total = account(preset("moepp-7b-16+4")).total_parameters
    assert lines[0].startswith(f"What rank 0 of 32 holds of {total / 1e9:.2f} B parameters")
    assert any(re.search(row, line) for line in lines), shown
    assert any(re.search(r"all weights .* as planned$", line) for line in lines)
    assert not dist.is_initialized()


def test_a_dry_run_that_finds_other_shards_says_which(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_dry_run, "first_shard", lambda name, shape, sizes: (7, *shape[1:]))
    with pytest.raises(MoEPPError, match=r"^dry run: model\.embed_tokens\.weight is .* and \(8192, 64\) on r"):
        run(SMALL, *TINY, "--dry-run")
    assert not dist.is_initialized()
