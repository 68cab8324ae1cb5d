"""The recipes of the paper's runs: what Table 2 and the training table say, on machines like the paper's."""

import dataclasses
import math
import subprocess
from functools import cache
from pathlib import Path

import pytest

from moepp.commands.plan import planned_batch, planned_config, planned_layout
from moepp.format import binary, duration, large, long_duration
from moepp.model import account
from moepp.plan import Batch, Cluster, Plan, Sizes, make_plan, parameter_shapes
from moepp.train import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER = sorted(path for path in (RECIPES / "paper").glob("*.yaml") if not path.name.startswith("_"))
NAMES = [path.stem for path in PAPER]
A100S = Cluster(
    gpu_memory=80 * 2**30, gpus_per_node=8, peak=312e12, utilisation=0.4, node_bandwidth=300e9, bandwidth=25e9
)
TOTALS = {"0.6b": 0.6e9, "1b": 1e9, "2b": 2e9, "7b": 7e9}  # Table 2 rounds: 7B is 7.68B


@cache
def recipe(path: Path) -> Recipe:
    return load_recipe(path)


def of(path: Path) -> tuple[str, bool]:
    """The model's size, and whether this is the run on mixture 2."""
    return path.stem.split("-")[1], path.stem.endswith("strategy-2")


def planned(path: Path) -> tuple[Plan, Batch, dict[str, tuple[int, ...]]]:
    """At the recipe's own sizes."""
    config, batch = planned_config(recipe(path)), planned_batch(recipe(path))
    layout = planned_layout(recipe(path), config, None)
    sizes = Sizes(fsdp=layout.fsdp_size, ep=layout.ep_size, replicate=layout.replicate_size)
    shapes = parameter_shapes(config)
    return make_plan(config, shapes, batch, sizes, A100S), batch, shapes


def test_there_is_a_recipe_for_every_run() -> None:
    small = ["moepp-0.6b-8+4", "moepp-1b-16+4", "moepp-2b-32+8", "moe-0.6b-8", "moe-1b-16", "moe-2b-32"]
    large = [f"{name}-strategy-{part}" for name in ("moepp-7b-16+4", "moe-7b-16") for part in (1, 2)]
    assert sorted(NAMES) == sorted(small + large)


@pytest.mark.parametrize("path", PAPER, ids=NAMES)
def test_a_run_has_the_papers_optimisation_and_budget(path: Path) -> None:
    size, last = of(path)
    o, training = recipe(path).optimization, recipe(path).training
    rates = (1e-4, 1e-5, 200) if last else (5e-4, 5e-5, 500 if size == "7b" else 2000)
    assert (o.learning_rate, o.final_learning_rate, o.warmup_steps) == rates
    assert (o.warmup_start, o.weight_decay, o.max_grad_norm) == (1e-7, 0.1, 1.0)
    tokens = recipe(path).samples_per_step * recipe(path).data.sequence_length
    assert (tokens, recipe(path).data.sequence_length) == (4 * 2**20, 2048)
    budget = 900e9 if size == "7b" and not last else 100e9
    assert abs(training["max_steps"] * tokens - budget) <= tokens / 2, "the nearest number of whole steps"


@pytest.mark.parametrize("path", PAPER, ids=NAMES)
def test_a_run_has_the_papers_model_and_its_data(path: Path) -> None:
    size, last = of(path)
    config = recipe(path).model_config()
    counts = account(config)
    assert counts.total_parameters == pytest.approx(TOTALS[size], rel=0.1)
    assert (config.tau, config.capacity_factor, config.router_aux_loss_coef) == (0.75, 1.1, 0.01)
    assert (config.vocab_size, config.max_position_embeddings) == (65536, 2048)
    assert config.gating_residual == path.stem.startswith("moepp-") == (config.moe.layout().num_zero_computation > 0)
    shares = {source.name: source.weight for source in recipe(path).data.sources}
    assert shares["dolma"] == (41.53 if last else 61.28)
    assert sum(shares.values()) == pytest.approx(100)


def test_the_last_tokens_start_from_the_first_ones_weights() -> None:
    for path in PAPER:
        first = path.with_name(path.name.replace("strategy-2", "strategy-1"))
        assert recipe(path).initial_weights == (recipe(first).output_dir if of(path)[1] else None)
    assert len({recipe(path).output_dir for path in PAPER}) == len(PAPER)


@pytest.mark.parametrize("path", PAPER, ids=NAMES)
def test_a_run_fits_four_nodes_of_eight_gpus_with_80_gib(path: Path) -> None:
    plan, batch, shapes = planned(path)
    assert plan.sizes.gpus == 32
    assert plan.fits
    config = planned_config(recipe(path))
    without = make_plan(config, shapes, dataclasses.replace(batch, checkpointing=False), plan.sizes, A100S)
    assert batch.checkpointing != without.fits, "activation checkpointing only where it is needed"


@pytest.mark.parametrize("path", [path for path in PAPER if not of(path)[1]], ids=lambda path: path.stem)
def test_the_page_shows_what_the_command_prints_today(path: Path) -> None:
    plan, batch, shapes = planned(path)
    memory, moved, step = plan.memory, plan.traffic, batch.tokens * batch.micro_batches
    states = memory.weights + memory.gradients + memory.optimizer
    row = [
        path.stem.replace("-strategy-1", ", first 900B"),
        large(sum(map(math.prod, shapes.values()))),
        *(binary(states), binary(memory.total - states), binary(memory.total)),
        binary(moved.gather.total + moved.reduce.total),
        *(duration(plan.step), large(step / plan.step)),
        long_duration(plan.step * recipe(path).training["max_steps"]),
    ]
    page = (RECIPES.parent / "docs" / "planning.md").read_text(encoding="utf-8")
    assert f"| {' | '.join(row)} |" in page


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_a_launcher_parses_and_says_how_it_is_used(name: str) -> None:
    script = RECIPES / "launch" / name
    subprocess.run(["bash", "-n", script], check=True)
    called = subprocess.run(["bash", script], capture_output=True, text=True)
    assert called.returncode == 2
    assert called.stderr.startswith("usage: ")


def test_the_launcher_starts_a_process_for_each_gpu_of_each_node(tmp_path: Path) -> None:
    script = RECIPES / "launch" / "torchrun.sh"
    settings = {"NNODES": "4", "MASTER_ADDR": "first", "JOB": "7", "PYTHON": "echo", "PATH": "/usr/bin:/bin"}
    called = subprocess.run(["bash", script, "a b.yaml", "seed=1"], capture_output=True, text=True, env=settings)
    assert "--nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint first:29500 --rdzv-id 7" in called.stdout
    assert called.stdout.endswith("-m moepp train a b.yaml seed=1\n")
    alone = subprocess.run(["bash", script, "r"], capture_output=True, text=True, env={**settings, "MASTER_ADDR": ""})
    assert alone.returncode == 2
    assert alone.stderr == "NNODES=4 needs MASTER_ADDR, a node that all others reach\n"
