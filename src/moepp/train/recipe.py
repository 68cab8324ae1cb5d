"""A training run as data: YAML plus dotted overrides, checked before anything heavy starts.

Sections: ``model`` (a preset, fields of :class:`moepp.model.MoEPPConfig`, or both), ``tokenizer``, ``data``,
``optimization``, ``training`` (fields of transformers' ``TrainingArguments``), ``distributed``, ``output_dir``,
``seed``, ``license``, ``initial_weights``.

``training.gradient_accumulation_steps`` counts the micro-batches of one optimizer step over all processes, which share
them: a recipe means the same optimization on any number of processes.
"""

import dataclasses
import logging
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data import DataSpec
from ..errors import ConfigError, nearest
from ..fields import check_section
from ..model import MoEPPConfig, preset
from .extends import one_line, read_merged
from .layout import DistributedSpec

logger = logging.getLogger("moepp.train")


@dataclass
class TokenizerSpec:
    """Where tokens come from."""

    path: str | None = None
    """Any AutoTokenizer's folder or name; None trains a byte-level BPE on the corpus."""
    vocab_size: int = 4096
    """Entries to train."""


@dataclass
class Optimization:
    """AdamW with linear warm-up and cosine decay; the paper's values (Table 3 runs) by default."""

    learning_rate: float = 5e-4
    final_learning_rate: float = 5e-5
    warmup_start: float = 1e-7
    warmup_steps: int = 2000
    weight_decay: float = 0.1
    """On matrices only."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    """0 does not clip."""

    def __post_init__(self) -> None:
        for field_ in dataclasses.fields(self):
            value = getattr(self, field_.name)
            if field_.name in ("learning_rate", "epsilon"):
                ok, rule = value > 0, "a number > 0"
            elif field_.name in ("beta1", "beta2"):
                ok, rule = 0 <= value < 1, "in [0, 1)"
            else:
                ok, rule = value >= 0, "a number >= 0"
            if not (ok and math.isfinite(value)):
                raise ConfigError(f"optimization.{field_.name}={value!r} must be {rule}")


@dataclass
class Recipe:
    """One training run; see the module's docstring."""

    output_dir: str
    seed: int = 0
    license: str | None = None
    """For the model card, as Hugging Face names licences: ``apache-2.0``. None is not stated."""
    initial_weights: str | None = None
    """A saved model's folder, whose weights a new run starts from; None draws them."""
    model: dict[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerSpec = field(default_factory=TokenizerSpec)
    data: DataSpec = field(default_factory=DataSpec)
    optimization: Optimization = field(default_factory=Optimization)
    training: dict[str, Any] = field(default_factory=dict)
    distributed: DistributedSpec = field(default_factory=DistributedSpec)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed} is outside [0, 2**32); choose another")
        check_section("model", self.model, MoEPPConfig.__annotations__ | {"preset": str, "vanilla": bool})
        self._check_training()

    def _check_training(self) -> None:
        from transformers import TrainingArguments

        hints = typing.get_type_hints(TrainingArguments)
        valid = {f.name: hints[f.name] for f in dataclasses.fields(TrainingArguments) if f.init}
        for name, value in self.training.items():
            if name in _SET_ELSEWHERE:
                raise ConfigError(f"training.{name} is not set here; set {_SET_ELSEWHERE[name]}")
            if name.endswith("_strategy") and value is False:
                self.training[name] = "no"  # which YAML reads as false
        check_section("training", self.training, valid)
        for name in self.reports_to:
            if name == "none":
                raise ConfigError("training.report_to='none' does not exist beside others; leave it out")
            if name not in TRACKERS:
                raise ConfigError(f"training.report_to={name!r} does not exist; {nearest(str(name), _REPORT_TO)}")
        for name in _AT_LEAST_ONE:
            if self.training.get(name, 1) < 1:
                raise ConfigError(f"training.{name}={self.training[name]} must be at least 1")
        for name in _POSITIVE:
            value = self.training.get(name)
            if value is not None and value <= 0:
                raise ConfigError(f"training.{name}={value} must be positive; below 1 it is a share of max_steps")
        if "max_steps" not in self.training:
            raise ConfigError("training.max_steps is missing; say how many optimizer steps to train")
        if self.optimization.warmup_steps >= self.training["max_steps"]:
            logger.warning(
                "optimization.warmup_steps=%d is not less than training.max_steps=%d: the run ends in its warm-up",
                *(self.optimization.warmup_steps, self.training["max_steps"]),
            )

    @property
    def reports_to(self) -> list[str]:
        """The trackers that get the run's numbers, beside the console and ``metrics.jsonl``."""
        value = self.training.get("report_to")
        names = TRACKERS[:1] if value is None else [value] if isinstance(value, str) else value
        return [] if list(names) == ["none"] else list(dict.fromkeys(names))

    @property
    def samples_per_step(self) -> int:
        """Samples that one optimizer step takes, over all processes."""
        return self.training.get("per_device_train_batch_size", 8) * self.micro_batches_per_step

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches that one optimizer step takes, over all processes."""
        return self.training.get("gradient_accumulation_steps", 1)

    def model_config(self, **overrides: Any) -> MoEPPConfig:
        """The model's configuration, with what the tokenizer decides filled in.

        Raises:
            ConfigError: a field's value cannot work.
        """
        fields = overrides | self.model
        name = fields.pop("preset", None)
        vanilla = fields.pop("vanilla", False)
        config = MoEPPConfig(**fields) if name is None else preset(name, **fields)
        return config.vanilla() if vanilla else config


TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""What ``training.report_to`` may name; the first one by default."""
_REPORT_TO = (*TRACKERS, "none")
_AT_LEAST_ONE = (
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
)
_POSITIVE = ("logging_steps", "eval_steps", "save_steps")
_SET_ELSEWHERE = {
    "output_dir": "output_dir",
    "seed": "seed",
    "data_seed": "seed",
    "learning_rate": "optimization.learning_rate",
    "warmup_steps": "optimization.warmup_steps",
    "weight_decay": "optimization.weight_decay",
    "adam_beta1": "optimization.beta1",
    "adam_beta2": "optimization.beta2",
    "adam_epsilon": "optimization.epsilon",
    "max_grad_norm": "optimization.max_grad_norm",
    "lr_scheduler_type": "optimization: the schedule is warm-up and cosine",
    "num_train_epochs": "training.max_steps",
    "resume_from_checkpoint": "--resume on the command line",
    "average_tokens_across_devices": "nothing: a loss is the mean over all processes' tokens",
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "accelerator_config"), "distributed"),
    "auto_find_batch_size": "training.per_device_train_batch_size",
    "dataloader_pin_memory": "nothing: memory is pinned where there is a GPU",
    "disable_tqdm": "nothing: the progress bar is there on a terminal",
    "ignore_data_skip": "nothing: a resumed run goes on at its exact sample",
    "load_best_model_at_end": "nothing: a run ends with the weights of its last step",
    "logging_nan_inf_filter": "nothing: a loss that is not finite ends the run",
    "prediction_loss_only": "nothing: validation computes losses",
    "remove_unused_columns": "nothing: a sample has the columns that the model reads",
    "save_only_model": "nothing: a checkpoint has all that a resume needs",
    "lr_scheduler_kwargs": "optimization: the schedule is warm-up and cosine",
    "train_sampling_strategy": "seed: it decides the order of the samples",
    "label_smoothing_factor": "nothing: the loss is that of Eq. 9",
    "fp16": "training.bf16: moepp does not scale the loss that float16 gradients need",
}


def load_recipe(path: str | Path, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Reads a YAML recipe, merged onto those that it :mod:`~.extends`, and applies overrides such as ``model.tau=0.5``.

    Raises:
        ConfigError: a file cannot be read, a key does not exist (the message names the nearest), or a value has the
            wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = read_merged(path)
    changes = [parse_override(item, "model.tau=0.5") for item in overrides]
    try:
        for key, value in changes:
            OmegaConf.update(merged, key, value)
        _check_keys(OmegaConf.to_container(merged), Recipe, "")
        typed = OmegaConf.merge(OmegaConf.structured(Recipe), merged)
        missing = OmegaConf.missing_keys(typed)
        if missing:
            raise ConfigError(f"{min(missing)} is missing in {path}; every recipe needs it")
        return typing.cast(Recipe, OmegaConf.to_object(typed))
    except OmegaConfBaseException as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ConfigError):  # raised by a dataclass while omegaconf was building it
            raise cause from error
        where = getattr(error, "full_key", None) or "recipe"
        raise ConfigError(f"{where}: {str(error.msg if hasattr(error, 'msg') else error).splitlines()[0]}") from error


def parse_override(item: str, example: str) -> tuple[str, Any]:
    """``key=value`` as a key and a value, which is YAML, except that ``1e-3`` is a number.

    Raises:
        ConfigError: it has another form; the message gives ``example``.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    key, equals, value = item.partition("=")
    if not (key and equals):
        raise ConfigError(f"override {item!r} is not of the form key=value, such as {example}")
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
    except YAMLError as error:
        raise ConfigError(f"override {item!r} is not YAML: {one_line(error)}") from error
    return key, parsed["value"]


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Writes a recipe that :func:`load_recipe` reads back."""
    import yaml

    path.write_text(yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False), encoding="utf-8")


def _check_keys(node: Any, schema: Any, where: str) -> None:
    """Raises for the first key that the dataclass ``schema`` does not have, naming the nearest."""
    if not isinstance(node, dict):
        raise ConfigError(f"{where.rstrip('.')} must hold keys and values, not {node!r}")
    hints = typing.get_type_hints(schema)
    valid = [f.name for f in dataclasses.fields(schema)]
    for key, value in node.items():
        full = f"{where}{key}"
        if key not in valid:
            raise ConfigError(f"{full} is not a recipe key; {nearest(str(key), valid)}")
        inner = hints[key]
        if dataclasses.is_dataclass(inner):
            _check_keys(value, inner, f"{full}.")
        elif typing.get_origin(inner) is list and dataclasses.is_dataclass(typing.get_args(inner)[0]):
            if not isinstance(value, list):
                raise ConfigError(f"{full}={value!r} must be a list")
            for index, item in enumerate(value):
                _check_keys(item, typing.get_args(inner)[0], f"{full}[{index}].")
