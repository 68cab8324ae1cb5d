"""From a recipe to the settings that transformers' Trainer takes."""

from typing import Any

import torch
from transformers import TrainingArguments

from ..errors import ConfigError
from .layout import Layout
from .recipe import Recipe


def training_arguments(recipe: Recipe, layout: Layout, validates: bool) -> TrainingArguments:
    """Settings for one of the layout's processes.

    Args:
        validates: whether there is text to validate on.

    Raises:
        ConfigError: they contradict each other or the layout.
    """
    o = recipe.optimization
    for name in ("eval_strategy", "eval_on_start"):
        if not validates and recipe.training.get(name, "no") not in (False, "no"):
            raise ConfigError(
                f"training.{name}={recipe.training[name]} has no text to validate on; "
                "raise data.validation_fraction or name a validation_split"
            )
    defaults = {
        "logging_steps": 10,
        "eval_strategy": "steps" if validates and "eval_steps" in recipe.training else "no",
        "save_total_limit": 3,
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.accelerator.is_available(),  # else TrainingArguments refuses bf16 without a GPU
        "per_device_eval_batch_size": recipe.training.get("per_device_train_batch_size", 8),
    }
    accumulated = {"gradient_accumulation_steps": recipe.micro_batches_per_step // layout.world_size}
    # Ours are callbacks of the first process, see moepp.train.tracking.
    settings: dict[str, Any] = defaults | recipe.training | accumulated | {"report_to": "none"}
    try:
        return TrainingArguments(
            **settings,
            ignore_data_skip=True,  # the loader starts where it should
            output_dir=recipe.output_dir,
            seed=recipe.seed,
            learning_rate=o.learning_rate,
            weight_decay=o.weight_decay,
            adam_beta1=o.beta1,
            adam_beta2=o.beta2,
            adam_epsilon=o.epsilon,
            max_grad_norm=o.max_grad_norm,
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            prediction_loss_only=True,
            save_only_model=True,  # of what Trainer would save; ours have all that a resume needs
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
    except ValueError as error:
        raise ConfigError(f"training: {' '.join(str(error).split())}") from error
