"""What transformers' integrations call of W&B, Trackio and MLflow, with the trackers' runs in memory."""

import os
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

NAMES = ("wandb", "trackio", "mlflow")


@dataclass
class TrackedRun:
    name: str
    project: str | None
    begun: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    logged: list[dict[str, Any]] = field(default_factory=list)
    """With the step under ``step``."""
    ended: list[bool] = field(default_factory=list)
    """Each time: whether well."""


class FakeTracker:
    """One of them; ``broken`` makes its next calls fail."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs: dict[str, TrackedRun] = {}
        self.active: str | None = None
        self.project: str | None = None
        self.broken = False

    @property
    def run(self) -> TrackedRun:
        (run,) = self.runs.values()
        return run

    def begin(self, name: str | None, project: str | None, known: str | None) -> None:
        self._works()
        assert self.active is None, "the run before it is still open"
        assert name is not None
        self.active = known or f"id-{len(self.runs)}"
        run = self.runs.setdefault(self.active, TrackedRun(name, project))
        run.begun += 1

    def describe(self, params: dict[str, Any], **_: Any) -> None:
        self._current().params.update(params)

    def log(self, numbers: dict[str, Any], step: int) -> None:
        self._works()
        self._current().logged.append(numbers | {"step": step})

    def end(self, well: bool) -> None:
        run, self.active = self._current(), None
        self._works()
        run.ended.append(well)

    def _current(self) -> TrackedRun:
        assert self.active is not None, "no run is open"
        return self.runs[self.active]

    def _works(self) -> None:
        if self.broken:
            raise NoNetwork(f"{self.name} is not reached\nat all")


class NoNetwork(Exception):
    """Of a kind that nobody else knows."""


class _Config:
    def __init__(self, tracker: FakeTracker) -> None:
        self.update = tracker.describe

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})


def install(name: str, monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    """Makes ``import name`` give a fake for the rest of the test."""
    tracker, module = FakeTracker(name), _module(name, monkeypatch)
    vars(module).update({"wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}[name](tracker, module))
    if name == "wandb":
        for inner in ("sdk", "sdk.lib", "sdk.lib.config_util"):
            _module(f"wandb.{inner}", monkeypatch).ConfigError = ValueError  # pyright: ignore[reportAttributeAccessIssue]
    return tracker


def _module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def _wandb(tracker: FakeTracker, module: Any) -> dict[str, Any]:
    def init(project: str, name: str | None = None) -> None:
        known = os.environ.get("WANDB_RUN_ID")
        assert known is None or os.environ["WANDB_RESUME"] == "allow"
        tracker.begin(name, project, known)
        module.run = SimpleNamespace(id=tracker.active, name=name, summary={}, _label=lambda code: None)

    def log(numbers: dict[str, Any]) -> None:
        tracker.log({key.removeprefix("train/"): value for key, value in numbers.items()}, numbers["train/global_step"])

    def finish(exit_code: int) -> None:
        tracker.end(not exit_code)
        module.run = None

    return {"run": None, "init": init, "config": _Config(tracker), "log": log, "finish": finish}


def _trackio(tracker: FakeTracker, module: Any) -> dict[str, Any]:
    current: dict[str, Any] = {"space_id": None, "run": None}

    def init(*, project: str, name: str | None, resume: str, **_: Any) -> None:
        assert resume == "allow"
        tracker.begin(name, project, name)
        current["run"] = SimpleNamespace(name=name)

    def log(numbers: dict[str, Any]) -> None:
        tracker.log({key.removeprefix("train/"): value for key, value in numbers.items()}, numbers["train/global_step"])

    def finish() -> None:
        current["run"] = None
        tracker.end(True)

    seen = {f"current_{key}": SimpleNamespace(get=lambda key=key: current[key]) for key in current}
    return {
        "init": init,
        "config": _Config(tracker),
        "log": log,
        "finish": finish,
        "context_vars": SimpleNamespace(**seen),
    }


def _mlflow(tracker: FakeTracker, module: Any) -> dict[str, Any]:
    experiment: list[str | None] = [None]

    def active_run() -> Any:
        return tracker.active and SimpleNamespace(info=SimpleNamespace(run_id=tracker.active))

    def log_params(params: dict[str, Any], synchronous: bool = True) -> None:
        assert len(params) <= 100
        tracker.describe(params)

    def log_metrics(metrics: dict[str, Any], step: int, synchronous: bool) -> None:
        tracker.log(metrics, step)

    limits = SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
    return {
        "__version__": "3.17.2",
        "utils": SimpleNamespace(validation=limits),
        "is_tracking_uri_set": lambda: True,
        "get_tracking_uri": lambda: "memory",
        "set_experiment": lambda name: experiment.__setitem__(0, name),
        "active_run": active_run,
        # As the real one, it takes the variable away.
        "start_run": lambda run_name, nested: tracker.begin(
            run_name, experiment[0], os.environ.pop("MLFLOW_RUN_ID", None)
        ),
        "log_params": log_params,
        "log_metrics": log_metrics,
        "end_run": lambda status="FINISHED": tracker.end(status == "FINISHED"),
    }
