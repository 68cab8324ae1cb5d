"""One training run from recipe to saved model, on one process or several."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch.utils.data import DataLoader

from ..data import StreamingData, train_loader
from ..errors import ConfigError, DataError
from ..model import MoEPPConfig, MoEPPForCausalLM
from . import checkpoint, restart
from .callbacks import (
    Interrupts,
    MetricsFile,
    ProgressBar,
    ValidateLastStep,
    tensorboard_says_it_once,
)
from .card import CARD_FILE, write_card
from .distributed import build_model, full_state, wait_for_all
from .group import Group
from .initial_weights import check_initial_weights, load_initial_weights
from .initialise import initialise
from .layout import Layout, resolve
from .prepared import Prepared, identity_of, model_config, prepare
from .process_group import Launch, check_devices, process_group
from .ranks import agreed, flattened, job, same_everywhere
from .recipe import Recipe, save_recipe
from .tables import data_table
from .tracking import Tracker, reporters
from .watchdog import Watchdog

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainingArguments

RECIPE_FILE = "recipe.yaml"
DATA_FILE = "data.json"


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves."""

    model: MoEPPForCausalLM
    """Where several processes trained, this one's shards."""
    prepared: Prepared
    metrics: dict[str, float]
    """The last validation's; empty after an interruption or without validation data."""
    signal: int | None
    """The signal that ended the run early, after saving a checkpoint; SIGTERM where ``stop`` did."""


def train(
    recipe: Recipe,
    *,
    resume: bool | Path = False,
    prepared: Prepared | None = None,
    console: Console | None = None,
    label: str = "step",
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Trains, validates and saves to ``recipe.output_dir``.

    Args:
        resume: True for the run's newest checkpoint, or a checkpoint's folder.
        prepared: data to use instead of reading it again; it must be the recipe's.
        label: what the console's lines begin with.
        stop: asked after each step; True ends the run as SIGTERM would, with a checkpoint to go on from.

    Raises:
        ConfigError, DataError: the recipe, the data, the output folder or the checkpoint cannot be used.
        TrainingDiverged: a loss was not finite.
    """
    launch = Launch.of(os.environ)
    gpus = 0 if recipe.training.get("use_cpu", False) else torch.cuda.device_count()
    with process_group(launch, recipe.distributed.timeout_seconds, "cuda" if gpus else "cpu"):
        same_everywhere(flattened(dataclasses.asdict(recipe)), "start all ranks with the same recipe")
        layout = agreed("found their places", lambda: _layout(recipe, launch, gpus))
        reports = agreed("loaded the trackers", lambda: reporters(recipe) if layout.first else [])
        console = (console or Console()) if layout.first else Console(quiet=True)
        run, group = Path(recipe.output_dir), Group.new()
        names = [path.name for path in checkpoint.checkpoints(run)]
        same_everywhere({"checkpoints": names}, "output_dir must be a folder that all machines share")
        again = restart.began_in(run)
        start = restart.newest_whole(run, group) if again else None
        if start is None:
            start = agreed("looked for checkpoints", lambda: _start(run, resume, again))
            if start is not None:
                checkpoint.verify(start, group)
        if prepared is None:
            prepared = prepare(recipe, console, saved_tokenizer=start)
            console.print(data_table(prepared.data))
        ready = agreed("prepared the run", lambda: _ready(recipe, layout, start, prepared))
        if layout.first and (start is not None or again):
            checkpoint.supersede(run, start)
        restart.begins_in(run)
        watchdog = Watchdog(run, job())
        with watchdog.watching():
            try:
                return _run(recipe, layout, ready, console, label, watchdog, reports, stop)
            except OSError as error:  # of what transformers writes by itself, or of data that is read while training
                raise DataError(f"training stopped: {error}; {checkpoint.way_on(run)}") from error


def _layout(recipe: Recipe, launch: Launch | None, gpus: int) -> Layout:
    check_devices(launch, gpus)
    layout = resolve(
        recipe.distributed,
        world_size=1 if launch is None else launch.world_size,
        rank=0 if launch is None else launch.rank,
        num_ffn_experts=recipe.model_config().num_ffn_experts,
    )
    if recipe.micro_batches_per_step % layout.world_size:
        raise ConfigError(
            f"training.gradient_accumulation_steps={recipe.micro_batches_per_step} micro-batches of a step cannot be "
            f"shared by {layout.world_size} processes; make it a multiple of them, with a smaller "
            "training.per_device_train_batch_size for the same step"
        )
    return layout


@dataclass(frozen=True)
class _Ready:
    config: MoEPPConfig
    arguments: "TrainingArguments"
    identity: Mapping[str, Any]
    prepared: Prepared
    loader: DataLoader[Any]
    start: Path | None
    """The checkpoint to go on from."""


def _ready(recipe: Recipe, layout: Layout, start: Path | None, prepared: Prepared) -> _Ready:
    """Everything that can still be refused."""
    from .arguments import training_arguments

    config = model_config(recipe, prepared.tokenizer)
    arguments = training_arguments(recipe, layout, bool(prepared.data.validation))
    identity = identity_of(recipe, config, prepared)
    if recipe.initial_weights is not None and start is None:
        check_initial_weights(Path(recipe.initial_weights), config)
    if start is not None:
        checkpoint.check_identity(start, identity)
        if isinstance(prepared.data.train, StreamingData):
            state = json.loads((start / checkpoint.STREAM_FILE).read_text(encoding="utf-8"))
            prepared.data.train.load_state_dict(state)
    loader = train_loader(
        prepared.data.train,
        batch_size=arguments.train_batch_size,
        rank=layout.rank,
        ranks=layout.world_size,
        first=0 if start is None else checkpoint.step_of(start) * recipe.micro_batches_per_step,
        num_workers=arguments.dataloader_num_workers,
        pin_memory=arguments.dataloader_pin_memory,
    )
    return _Ready(config, arguments, identity, prepared, loader, start)


def _run(
    recipe: Recipe,
    layout: Layout,
    ready: _Ready,
    console: Console,
    label: str,
    watchdog: Watchdog,
    reports: Sequence["TrainerCallback"],
    stop: Callable[[], bool],
) -> TrainResult:
    from transformers import PrinterCallback, ProgressCallback, set_seed
    from transformers.utils import logging as transformers_logging

    from .trainer import MoEPPTrainer

    run, prepared, start = Path(recipe.output_dir), ready.prepared, ready.start
    carried: list[str] = []
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
            carried += sorted(path.name for path in aside.iterdir())
    transformers_logging.disable_progress_bar()

    model = build_model(ready.config, layout, device=ready.arguments.device)
    initialise(model, recipe.seed)
    if recipe.initial_weights is not None and start is None:
        folder = Path(recipe.initial_weights)
        agreed("loaded the initial weights", lambda: load_initial_weights(model, folder))
    interrupts, bar = Interrupts(stop), ProgressBar(console, label)
    callbacks: list[TrainerCallback] = [interrupts]
    if layout.first:
        callbacks += [MetricsFile(run), bar, *reports]
    if prepared.data.validation:
        callbacks.append(ValidateLastStep())
    callbacks.append(watchdog)  # the last one, so that it sees what the others want done
    trainer = MoEPPTrainer(
        model=model,
        args=ready.arguments,
        train_dataset=prepared.data.train,
        validation=prepared.data.validation,
        weights={source.name: source.weight for source in prepared.corpus.sources},
        processing_class=prepared.tokenizer,
        optimization=recipe.optimization,
        identity=ready.identity,
        carried=carried,
        layout=layout,
        loader=ready.loader,
        patient=watchdog.patient,
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
        for report in reports:
            if isinstance(report, Tracker):
                report.close()
    if interrupts.received is not None and trainer.state.global_step < trainer.state.max_steps:
        wait_for_all("stopped")
        return TrainResult(model, prepared, {}, interrupts.received)
    trainer.require_finite_weights()
    metrics, log = trainer.last_validation(), trainer.state.log_history
    with watchdog.patient():
        state = full_state(model)
        if layout.first:
            with checkpoint.writing(run, "the trained model"), checkpoint.moved_into(run) as aside:
                whole = build_model(ready.config, Layout(), device="meta")
                whole.load_state_dict(state, assign=True)
                whole.tie_weights()
                whole.save_pretrained(aside)
            with checkpoint.writing(run, "the model card"), checkpoint.moved_into(run) as aside:
                write_card(
                    aside / CARD_FILE, recipe=recipe, config=ready.config, data=prepared.data, metrics=metrics, log=log
                )
        wait_for_all("saved the model")
    return TrainResult(model, prepared, metrics, None)


def _start(run: Path, resume: bool | Path, again: bool) -> Path | None:
    """The checkpoint to go on from, if the run shall; else its folder must be free, or this job's own ``again``."""
    if again and not isinstance(resume, Path):
        return None
    if resume is False:
        _require_unused(run)
        return None
    if resume is True:
        found = checkpoint.checkpoints(run)
        if not found and (run / RECIPE_FILE).is_file():
            return None  # a run that ended before its first checkpoint begins again
        if not found:
            remedy = "remove it and start" if run.exists() else "start"
            raise DataError(f"output_dir={str(run)!r} has no checkpoint to resume from; {remedy} without --resume")
        resume = found[-1]
    if not resume.is_dir():
        raise DataError(f"checkpoint {resume} does not exist; check the path")
    return resume


def _require_unused(run: Path) -> None:
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(
            f"output_dir={str(run)!r} is already in use; choose another, remove it, or continue its run with --resume"
        )
