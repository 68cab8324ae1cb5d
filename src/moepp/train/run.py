"""One training run from recipe to saved model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from ..data import (
    Corpus,
    Data,
    StreamingData,
    TrainingData,
    build_data,
    check_vocabulary,
    load_corpus,
    load_tokenizer,
    sample_documents,
    tokenizer_hash,
    train_tokenizer,
)
from ..errors import ConfigError, DataError
from ..model import MoEPPConfig, MoEPPForCausalLM
from . import checkpoint
from .callbacks import (
    Interrupts,
    MetricsFile,
    ProgressBar,
    ValidateLastStep,
    tensorboard,
    tensorboard_says_it_once,
)
from .card import CARD_FILE, write_card
from .distributed import build_model, from_first, full_state, join, wait_for_all
from .initialise import initialise
from .layout import Layout
from .recipe import Recipe, save_recipe
from .tables import data_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments

RECIPE_FILE = "recipe.yaml"
DATA_FILE = "data.json"


@dataclass(frozen=True)
class Prepared:
    """Text, tokenizer and samples: what several runs on the same data can share."""

    corpus: Corpus
    tokenizer: "PreTrainedTokenizerBase"
    data: Data


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves."""

    model: MoEPPForCausalLM
    """Where several processes trained, this one's shards."""
    prepared: Prepared
    metrics: dict[str, float]
    """The last validation's; empty after an interruption or without validation data."""
    signal: int | None
    """The signal that ended the run early, after saving a checkpoint."""


def prepare(recipe: Recipe, console: Console, *, saved_tokenizer: Path | None = None) -> Prepared:
    """Reads the corpus, loads or trains the tokenizer, packs the samples.

    Args:
        saved_tokenizer: a folder with the tokenizer that this run trained before it was interrupted.

    Raises:
        ConfigError, DataError: the data cannot be used, or is less than one step takes.
    """
    recipe.model_config()  # what cannot work is refused before the slow part
    with console.status("reading the corpus"):
        corpus = load_corpus(recipe.data)
    path = recipe.tokenizer.path or saved_tokenizer
    with console.status("training the tokenizer" if path is None else "loading the tokenizer"):
        if path is None:
            tokenizer = from_first(lambda: train_tokenizer(sample_documents(corpus), recipe.tokenizer.vocab_size))
        else:
            tokenizer = load_tokenizer(str(path))
    if (vocab_size := recipe.model.get("vocab_size")) is not None:
        check_vocabulary(tokenizer, vocab_size)
    samples = recipe.samples_per_step
    with console.status("tokenising") as status:
        data = build_data(
            recipe.data,
            tokenizer,
            seed=recipe.seed,
            num_samples=recipe.training["max_steps"] * samples,
            corpus=corpus,
            progress=lambda what, done, total: status.update(f"tokenising {what}: {done}/{total or '?'} documents"),
        )
    if isinstance(data.train, TrainingData) and (blocks := sum(map(len, data.train.blocks))) < samples:
        raise DataError(
            f"data: {blocks} samples of data.sequence_length={recipe.data.sequence_length} are less than the {samples} "
            "of one step; add text, or lower training.per_device_train_batch_size or data.sequence_length"
        )
    return Prepared(corpus, tokenizer, data)


def train(
    recipe: Recipe,
    *,
    resume: bool | Path = False,
    prepared: Prepared | None = None,
    console: Console | None = None,
    label: str = "step",
) -> TrainResult:
    """Trains, validates and saves to ``recipe.output_dir``.

    Args:
        resume: True for the run's newest checkpoint, or a checkpoint's folder.
        prepared: data to use instead of reading it again; it must be the recipe's.
        label: what the console's lines begin with.

    Raises:
        ConfigError, DataError: the recipe, the data, the output folder or the checkpoint cannot be used.
        TrainingDiverged: a loss was not finite.
    """
    layout = join(recipe.distributed, recipe.model_config().num_ffn_experts)
    console = (console or Console()) if layout.first else Console(quiet=True)
    run = Path(recipe.output_dir)
    start = _find_checkpoint(run, resume)
    if start is None:
        _require_unused(run)
    wait_for_all()  # before the first one writes into it
    if prepared is None:
        prepared = prepare(recipe, console, saved_tokenizer=start)
        console.print(data_table(prepared.data))
    config = _model_config(recipe, prepared.tokenizer)
    arguments = _arguments(recipe, layout, bool(prepared.data.validation))
    identity = _identity(recipe, config, prepared)
    if start is not None:
        checkpoint.check_identity(start, identity)
        if layout.first:
            checkpoint.supersede(run, start)
        if isinstance(prepared.data.train, StreamingData):
            prepared.data.train.load_state_dict(
                json.loads((start / checkpoint.STREAM_FILE).read_text(encoding="utf-8"))
            )
    try:
        return _run(recipe, layout, config, arguments, identity, prepared, start, console, label)
    except OSError as error:  # of what transformers writes by itself, or of data that is read while training
        raise DataError(f"training stopped: {error}; {checkpoint.way_on(run)}") from error


def _run(
    recipe: Recipe,
    layout: Layout,
    config: MoEPPConfig,
    arguments: "TrainingArguments",
    identity: Mapping[str, Any],
    prepared: Prepared,
    start: Path | None,
    console: Console,
    label: str,
) -> TrainResult:
    from transformers import PrinterCallback, ProgressCallback, set_seed
    from transformers.utils import logging as transformers_logging

    from .trainer import MoEPPTrainer

    run = Path(recipe.output_dir)
    if layout.first:
        checkpoint.clear_staging(run)
        with (
            checkpoint.writing(run, f"{RECIPE_FILE}, {DATA_FILE} and the tokenizer"),
            checkpoint.moved_into(run) as aside,
        ):
            save_recipe(recipe, aside / RECIPE_FILE)
            data = {"corpus_hash": prepared.data.corpus_hash, "hash": prepared.data.hash, "sources": prepared.data.rows}
            (aside / DATA_FILE).write_text(json.dumps(data, indent=1), encoding="utf-8")
            prepared.tokenizer.save_pretrained(aside)
    transformers_logging.disable_progress_bar()

    model = build_model(config, layout, device=arguments.device)
    initialise(model, recipe.seed)
    interrupts, bar = Interrupts(), ProgressBar(console, label)
    callbacks = [interrupts]
    if layout.first:
        callbacks += [MetricsFile(run), bar, *tensorboard(run)]
    if prepared.data.validation:
        callbacks.append(ValidateLastStep())
    trainer = MoEPPTrainer(
        model=model,
        args=arguments,
        train_dataset=prepared.data.train,
        validation=prepared.data.validation,
        weights={source.name: source.weight for source in prepared.corpus.sources},
        processing_class=prepared.tokenizer,
        optimization=recipe.optimization,
        identity=identity,
        layout=layout,
        first_step=0 if start is None else checkpoint.step_of(start),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    set_seed(recipe.seed + layout.rank)  # for dropout, which differs from process to process
    try:
        with interrupts.installed(), tensorboard_says_it_once():
            trainer.train(resume_from_checkpoint=None if start is None else str(start))
    finally:
        bar.close()
    if interrupts.received is not None and trainer.state.global_step < trainer.state.max_steps:
        return TrainResult(model, prepared, {}, interrupts.received)
    trainer.require_finite_weights()
    metrics, log = trainer.last_validation(), trainer.state.log_history
    state = full_state(model)
    if layout.first:
        with checkpoint.writing(run, "the trained model"), checkpoint.moved_into(run) as aside:
            model.save_pretrained(aside, state_dict=state)
        with checkpoint.writing(run, "the model card"), checkpoint.moved_into(run) as aside:
            write_card(
                aside / CARD_FILE, recipe=recipe, config=model.config, data=prepared.data, metrics=metrics, log=log
            )
    wait_for_all()
    return TrainResult(model, prepared, metrics, None)


def _model_config(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> MoEPPConfig:
    config = recipe.model_config(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if recipe.data.sequence_length > config.max_position_embeddings:
        raise ConfigError(
            f"data.sequence_length={recipe.data.sequence_length} exceeds "
            f"model.max_position_embeddings={config.max_position_embeddings}; lower one or raise the other"
        )
    return config


def _identity(recipe: Recipe, config: MoEPPConfig, prepared: Prepared) -> dict[str, Any]:
    """What must be the same for a resumed run to go on as if it had never stopped."""
    return {
        **{f"model.{name}": getattr(config, name) for name in MoEPPConfig.__annotations__},
        "data (corpus hash)": prepared.corpus.hash,
        "data.sequence_length": recipe.data.sequence_length,
        "data (weights)": [source.weight for source in prepared.corpus.sources],
        "tokenizer (hash)": tokenizer_hash(prepared.tokenizer),
        "seed": recipe.seed,
        "training (samples per step)": recipe.samples_per_step,
    }


def _find_checkpoint(run: Path, resume: bool | Path) -> Path | None:
    if resume is False:
        return None
    if resume is True:
        found = checkpoint.checkpoints(run)
        if not found:
            remedy = "remove it and start" if run.exists() else "start"
            raise DataError(f"output_dir={str(run)!r} has no checkpoint to resume from; {remedy} without --resume")
        resume = found[-1]
    if not resume.is_dir():
        raise DataError(f"checkpoint {resume} does not exist; check the path")
    checkpoint.verify(resume)
    return resume


def _require_unused(run: Path) -> None:
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(
            f"output_dir={str(run)!r} is already in use; choose another, remove it, or continue its run with --resume"
        )


def _arguments(recipe: Recipe, layout: Layout, validates: bool) -> "TrainingArguments":
    from transformers import TrainingArguments

    o = recipe.optimization
    for name in ("eval_strategy", "eval_on_start"):
        if not validates and recipe.training.get(name, "no") not in (False, "no"):
            raise ConfigError(
                f"training.{name}={recipe.training[name]} has no text to validate on; "
                "raise data.validation_fraction or name a validation_split"
            )
    micro_batches = recipe.micro_batches_per_step
    if micro_batches % layout.world_size:
        raise ConfigError(
            f"training.gradient_accumulation_steps={micro_batches} micro-batches of a step cannot be shared by "
            f"{layout.world_size} processes; make it a multiple of them, with a smaller "
            "training.per_device_train_batch_size for the same step"
        )
    defaults = {
        "logging_steps": 10,
        "eval_strategy": "steps" if validates and "eval_steps" in recipe.training else "no",
        "save_total_limit": 3,
        "use_cpu": not torch.accelerator.is_available(),  # else TrainingArguments refuses bf16 without a GPU
        "per_device_eval_batch_size": recipe.training.get("per_device_train_batch_size", 8),
    }
    try:
        arguments = TrainingArguments(
            **(defaults | recipe.training | {"gradient_accumulation_steps": micro_batches // layout.world_size}),
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
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
    except ValueError as error:
        raise ConfigError(f"training: {' '.join(str(error).split())}") from error
    return arguments
