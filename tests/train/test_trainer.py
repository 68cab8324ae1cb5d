"""What one optimizer step does: groups, rates, accumulation, precision, recomputation."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from moepp.train import Optimization
from moepp.train.arguments import training_arguments
from moepp.train.layout import Layout
from moepp.train.trainer import learning_rate

from ..tolerances import assert_close
from .tiny import Runner, at_step, logged

FROZEN = "optimization.learning_rate=1e-30"  # too small to change a float32 weight


@pytest.fixture(scope="module")
def optimizer(shared: Runner) -> tuple[Any, dict[str, Tensor]]:
    """The optimizer after one step, and the parameters by name."""
    seen: dict[str, Any] = {}
    with at_step(1, seen.update):
        shared.train("one", "training.max_steps=1")
    return seen["optimizer"], dict(seen["model"].named_parameters())


def test_decay_is_on_matrices_only_and_not_on_norms_and_constants(optimizer: tuple[Any, dict[str, Tensor]]) -> None:
    groups, parameters = optimizer[0].param_groups, optimizer[1]
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(parameters)
    by_name = {name: decay[id(p)] for name, p in parameters.items()}
    plain = {name for name, value in by_name.items() if value == 0}
    assert plain == {
        "model.norm.weight",
        *(
            f"model.layers.{i}.{name}.weight"
            for i in (0, 1)
            for name in ("input_layernorm", "post_attention_layernorm")
        ),
        *(f"model.layers.{i}.mlp.zero_computation.constant" for i in (0, 1)),
    }
    assert {by_name[name] for name in by_name.keys() - plain} == {0.1}


def test_the_optimizer_is_adamw_with_the_papers_betas(optimizer: tuple[Any, dict[str, Tensor]]) -> None:
    assert isinstance(optimizer[0].optimizer, torch.optim.AdamW)
    for group in optimizer[0].param_groups:
        assert group["betas"] == (0.9, 0.95)
        assert group["eps"] == 1e-8


def test_rates_warm_up_linearly_and_follow_a_cosine_to_the_final_rate(plain: Any) -> None:
    """The recipe: 4 steps of warm-up to 5e-3, 12 steps, final rate 5e-4."""
    rates = [entry["learning_rate"] for entry in logged(plain)]
    assert rates[0] == pytest.approx(1e-7, rel=1e-12)
    assert rates[:4] == pytest.approx([1e-7 + (5e-3 - 1e-7) * step / 4 for step in range(4)])
    assert rates[4] == pytest.approx(5e-3, rel=1e-12)
    cosine = [5e-4 + 4.5e-3 * (1 + math.cos(math.pi * step / 7)) / 2 for step in range(8)]
    assert rates[4:] == pytest.approx(cosine)
    assert rates[-1] == pytest.approx(5e-4, rel=1e-12)


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 5), (3, 4), (4, 4), (9, 4)])
def test_rates_stay_within_their_bounds_for_short_runs(warmup: int, total: int) -> None:
    o = Optimization(learning_rate=1.0, final_learning_rate=0.1, warmup_start=0.01, warmup_steps=warmup)
    rates = [learning_rate(o, step, total) for step in range(total)]
    assert all(0.01 <= rate <= 1.0 for rate in rates)
    assert rates[0] == (0.01 if warmup else 1.0)
    if total - 1 - warmup > 0:
        assert rates[-1] == pytest.approx(0.1)


def gradients(runner: Runner, name: str, *overrides: str) -> list[dict[str, Tensor]]:
    """Each step's gradients, unclipped, before the optimizer sees them, at weights that do not move."""
    steps: list[dict[str, Tensor]] = []

    def keep(seen: dict[str, Any]) -> None:
        steps.append({n: p.grad.clone() for n, p in seen["model"].named_parameters() if p.grad is not None})

    still = [FROZEN, "optimization.final_learning_rate=0", "optimization.warmup_start=0"]
    fixed = ["optimization.max_grad_norm=0", "model.attention_dropout=0.0", "training.per_device_train_batch_size=2"]
    with at_step(None, keep, "on_pre_optimizer_step"):
        runner.train(name, *still, *fixed, *overrides)
    return steps


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_accumulation_changes_neither_gradients_nor_logged_losses_at_any_beta(runner: Runner, beta: float) -> None:
    """Four micro-batches as four steps, and as one: beta must not be multiplied by four."""
    coefficient = f"model.router_aux_loss_coef={beta}"
    four = gradients(runner, "four", coefficient, "training.max_steps=4")
    (one,) = gradients(runner, "one", coefficient, "training.max_steps=1", "training.gradient_accumulation_steps=4")
    assert len(four) == 4
    for name, gradient in one.items():
        assert_close(gradient, torch.stack([step[name] for step in four]).mean(0), name=name)

    (together,) = logged(runner.out("one"))
    apart = logged(runner.out("four"))
    keys = ["loss", "lm_loss", "balance_loss", "layer_0/balance_loss", "layer_1/balance_loss"]
    for key in keys:
        assert together[key] == pytest.approx(sum(step[key] for step in apart) / 4, rel=1e-5), key
    for step in [together, *apart]:
        assert step["loss"] == pytest.approx(step["lm_loss"] + beta * step["balance_loss"], rel=1e-5)


def test_the_balance_loss_reaches_the_routers_gradient(runner: Runner) -> None:
    """Without this, the equality above would hold for a loss that is only logged."""
    router = "model.layers.1.mlp.router.weight"
    without, with_ = (
        gradients(runner, f"beta{beta}", f"model.router_aux_loss_coef={beta}", "training.max_steps=1")[0][router]
        for beta in (0.0, 1.0)
    )
    assert (with_ - without).abs().max() > 0.01 * without.abs().max()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`")
def test_gradient_checkpointing_changes_no_number(runner: Runner) -> None:
    """Losses, norms and routing counts: a recomputed forward pass must not be counted twice."""
    runner.train("off", "training.max_steps=4")
    runner.train("on", "training.max_steps=4", "training.gradient_checkpointing=true")
    for off, on in zip(logged(runner.out("off")), logged(runner.out("on")), strict=True):
        keys = off.keys() - {"tokens_per_second"}
        assert {k: on[k] for k in keys} == pytest.approx({k: off[k] for k in keys}, rel=1e-5)
        assert on["ffn_per_token"] == off["ffn_per_token"]


def test_bf16_runs_on_the_cpu_with_the_router_in_float32(runner: Runner) -> None:
    dtypes: dict[str, torch.dtype] = {}

    def watch(seen: dict[str, Any]) -> None:
        mlp = seen["model"].model.layers[1].mlp
        mlp.router.register_forward_hook(lambda module, args, out: dtypes.update(router=out.probs.dtype))
        seen["model"].lm_head.register_forward_hook(lambda module, args, out: dtypes.update(head=out.dtype))

    runner.train("f32", "training.max_steps=4")
    with at_step(None, watch, "on_train_begin"):
        runner.train("bf16", "training.max_steps=4", "training.bf16=true")
    assert dtypes == {"router": torch.float32, "head": torch.bfloat16}
    for half, full in zip(logged(runner.out("bf16")), logged(runner.out("f32")), strict=True):
        assert all(math.isfinite(value) for value in half.values())
        assert half["lm_loss"] == pytest.approx(full["lm_loss"], rel=0.03)
        assert half["lm_loss"] != full["lm_loss"]


def test_bf16_asks_for_nothing_else_on_a_machine_without_a_gpu(runner: Runner) -> None:
    """TrainingArguments alone would refuse it there unless the recipe says use_cpu."""
    recipe = runner.recipe("bare", "training.bf16=true")
    del recipe.training["use_cpu"]
    assert training_arguments(recipe, Layout(), True).use_cpu is not torch.accelerator.is_available()
