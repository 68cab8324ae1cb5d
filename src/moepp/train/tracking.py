"""Experiment trackers: transformers' integrations of W&B, Trackio and MLflow, with what a run of ours asks of them.

A tracker gets what the integration sends, settings, the model's configuration and every logged number, and the recipe's
fields besides. A resumed run goes on in the tracker's own run, whose identity the run's folder keeps. A tracker that
cannot begin is a mistake to mend before training; one that fails later must not cost the run: it is left out, and
nothing else changes. Where the recipe names none, runs write to TensorBoard.
"""

import copy
import dataclasses
import importlib.util
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..errors import ConfigError, first_line
from . import checkpoint
from .callbacks import tensorboard
from .group import Held
from .ranks import flattened
from .recipe import Recipe

logger = logging.getLogger("moepp.train")
TRACKERS_FILE = "trackers.json"
_PROJECT = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME"}  # Trackio reads training.project itself
_RUN = {"wandb": "WANDB_RUN_ID", "mlflow": "MLFLOW_RUN_ID"}
_AT_ONCE = 100  # parameters that MLflow takes in one call


def reporters(recipe: Recipe) -> list[TrainerCallback]:
    """The callbacks that ``training.report_to`` asks for; TensorBoard's, where it is installed, if it says nothing.

    Raises:
        ConfigError: one that is named is not installed or cannot be loaded.
    """
    run, found = Path(recipe.output_dir), []
    fields = flattened(dataclasses.asdict(recipe))
    for name in recipe.reports_to:
        if recipe.training.get("report_to") is not None and importlib.util.find_spec(name) is None:
            raise ConfigError(f"training.report_to={name!r} is not installed; pip install {name}, or leave it out")
        found += tensorboard(run) if name == "tensorboard" else [Tracker(name, run, fields)]
    return found


class Tracker(TrainerCallback):
    """One of transformers' integrations, guarded.

    Args:
        fields: what to tell the tracker about the run, beside what the integration tells.

    Raises:
        ConfigError: it is installed and cannot be loaded.
    """

    def __init__(self, name: str, run: Path, fields: Mapping[str, Any]) -> None:
        self.name, self.run, self.fields = name, run, fields
        try:
            self._module: Any = importlib.import_module(name)
            self._integration: TrainerCallback = INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:
            raise ConfigError(
                f"training.report_to={name!r} cannot be loaded: {first_line(error)}; install it again, or leave it out"
            ) from error
        self._open = self._lost = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any) -> None:
        """Begins a run of the tracker's, or goes on with the one that a resumed run had.

        Raises:
            ConfigError: a new run cannot begin, as without an account; one that goes on does so without the tracker.
        """
        known = self._known().get(self.name) if state.global_step else None
        settings = {}
        if self.name in _PROJECT and args.project != TrainingArguments.project:
            settings[_PROJECT[self.name]] = args.project
        if self.name in _RUN and known is not None:
            settings |= {_RUN[self.name]: known, "WANDB_RESUME": "allow"}
        named = copy.copy(args)
        if self.name == "trackio":  # a name is all that tells its runs apart
            named.run_name = known or args.run_name or f"{self.run.resolve().name}-{secrets.token_hex(2)}"
        else:
            named.run_name = args.run_name or self.run.resolve().name
        with Held() as held, _environment(settings):
            self._open = not self._is_running()  # else the caller has opened it, and ends it
            self._integration.on_train_begin(named, state, control, **of)
            if known is None or self.name != "mlflow":  # where a parameter, once said, stays
                self._describe()
            if known is None:
                self._remember()
        if held.error is not None and not state.global_step:
            raise ConfigError(
                f"training.report_to={self.name!r} cannot begin: {first_line(held.error)}; see to that, or leave it out"
            ) from held.error
        self._check(held)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any) -> None:
        self._pass_on("on_log", args, state, control, **of)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any) -> None:
        self._pass_on("on_save", args, state, control, **of)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any) -> None:
        self._pass_on("on_train_end", args, state, control, **of)
        self.close(failed=False)

    def close(self, *, failed: bool = True) -> None:
        """Ends the tracker's run, if training has not; in one process the next run is another one."""
        if not self._open:
            return
        self._open = False
        with Held() as held:
            if self._is_running():  # the integration may have ended it
                if self.name == "mlflow":
                    self._module.end_run("FAILED" if failed else "FINISHED")
                else:
                    self._module.finish(**({"exit_code": int(failed)} if self.name == "wandb" else {}))
        self._check(held)

    def _is_running(self) -> bool:
        if self.name == "trackio":
            return self._module.context_vars.current_run.get() is not None
        return (self._module.active_run() if self.name == "mlflow" else self._module.run) is not None

    def _pass_on(self, event: str, *args: Any, **of: Any) -> None:
        if not self._lost:
            with Held() as held:
                getattr(self._integration, event)(*args, **of)
            self._check(held)

    def _check(self, held: Held) -> None:
        if held.error is not None and not self._lost:
            logger.warning(
                "%s failed (%s): it gets nothing more of this run, which goes on", self.name, first_line(held.error)
            )
            self._lost = True

    def _describe(self) -> None:
        fields = {f"recipe.{name}": value for name, value in self.fields.items()}
        if self.name != "mlflow":
            self._module.config.update(fields, allow_val_change=True)
            return
        longest = self._module.utils.validation.MAX_PARAM_VAL_LENGTH
        texts = [(name, str(value)[:longest]) for name, value in fields.items()]
        for first in range(0, len(texts), _AT_ONCE):
            self._module.log_params(dict(texts[first : first + _AT_ONCE]))

    def _remember(self) -> None:
        if self.name == "mlflow":
            identity = self._module.active_run().info.run_id
        elif self.name == "wandb":
            identity = self._module.run.id
        else:
            identity = self._module.context_vars.current_run.get().name
        with checkpoint.writing(self.run, TRACKERS_FILE), checkpoint.moved_into(self.run) as aside:
            (aside / TRACKERS_FILE).write_text(json.dumps(self._known() | {self.name: identity}), encoding="utf-8")

    def _known(self) -> dict[str, str]:
        """The trackers' runs that belong to this one, by tracker; none where the file cannot be read any more."""
        file = self.run / TRACKERS_FILE
        if not file.is_file():
            return {}
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(known, dict):
                raise ValueError("it holds no names")
        except (OSError, ValueError) as error:
            logger.warning("%s is damaged (%s): %s begins a new run", file, first_line(error), self.name)
            return {}
        return known


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """While the block runs, the variables by which these libraries are told what their integrations do not ask for."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)  # MLflow takes its run's away itself
            else:
                os.environ[name] = value
