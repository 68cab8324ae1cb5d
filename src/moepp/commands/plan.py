"""``moepp plan``."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..errors import ConfigError
from ..model import MoEPPConfig
from ..plan import Batch, Sizes, make_plan, make_plans, parameter_shapes
from ..train import Recipe, load_recipe
from ..train.layout import Layout, resolve
from .plan_options import PlanOptions
from .plan_tables import detail_table, heading, sizes_table


def run_plan(path: Path, overrides: Sequence[str], options: PlanOptions, *, dry_run: bool) -> None:
    """Prints what a recipe's run needs at its sizes, and at all others that so many GPUs allow.

    Args:
        dry_run: build the model as the first process would, without memory, and compare that with the plan instead.

    Raises:
        ConfigError: the recipe or an option cannot work.
        MoEPPError: the dry run found something else than the plan says.
    """
    console = Console(width=max(Console().width, 110))  # below that, its tables lose their columns
    cluster = options.cluster()
    recipe = load_recipe(path, overrides)
    config, batch = planned_config(recipe), planned_batch(recipe)
    layout = planned_layout(recipe, config, options.gpus)
    gpus = options.gpus or layout.world_size
    if batch.micro_batches % gpus:
        raise ConfigError(
            f"training.gradient_accumulation_steps={batch.micro_batches}, the micro-batches of a step over all "
            f"processes, is not a multiple of {gpus} GPUs; choose another number of either"
        )
    shapes = parameter_shapes(config)
    plans = make_plans(config, shapes, batch, gpus, cluster)
    plan = plans[0]
    if gpus == layout.world_size:
        sizes = Sizes(fsdp=layout.fsdp_size, ep=layout.ep_size, replicate=layout.replicate_size)
        plan = make_plan(config, shapes, batch, sizes, cluster)
    if dry_run:
        from .plan_dry_run import dry_run_table

        console.print(dry_run_table(config, shapes, plan))
        return
    steps = recipe.training["max_steps"]
    console.print(heading(path.stem, shapes, batch, cluster, plan.sizes), highlight=False, markup=False)
    console.print(detail_table(config, batch, cluster, plan, steps))
    if gpus != layout.world_size:
        console.print(f"These are the best sizes: the recipe's own are for {layout.world_size} GPUs, not {gpus}.\n")
    console.print(sizes_table(plans, plan.sizes, batch, steps))


def planned_config(recipe: Recipe) -> MoEPPConfig:
    """The model's configuration, as training would make it, without loading a tokenizer.

    Raises:
        ConfigError: the vocabulary's size is the tokenizer's to say.
    """
    if "preset" in recipe.model or "vocab_size" in recipe.model:
        return recipe.model_config()
    if recipe.tokenizer.path is not None:
        raise ConfigError(
            "model.vocab_size is not in the recipe, and a plan loads no tokenizer; add model.vocab_size=N for "
            f"tokenizer.path={recipe.tokenizer.path!r}"
        )
    return recipe.model_config(vocab_size=recipe.tokenizer.vocab_size)


def planned_batch(recipe: Recipe) -> Batch:
    """One optimizer step of a recipe."""
    training = recipe.training
    return Batch(
        sequences=training.get("per_device_train_batch_size", 8),
        sequence_length=recipe.data.sequence_length,
        micro_batches=training.get("gradient_accumulation_steps", 1),
        bf16=training.get("bf16", False),
        checkpointing=training.get("gradient_checkpointing", False),
    )


def planned_layout(recipe: Recipe, config: MoEPPConfig, gpus: int | None) -> Layout:
    """The recipe's sizes; those that it leaves open for so many GPUs, one by default.

    Raises:
        ConfigError: they fit neither each other nor the model.
    """
    spec = recipe.distributed
    own = (gpus or spec.replicate_size) if spec.fsdp_size is None else spec.fsdp_size * spec.replicate_size
    return resolve(spec, world_size=own, rank=0, num_ffn_experts=config.num_ffn_experts)
