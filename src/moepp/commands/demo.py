"""``moepp demo``: trains a small MoE++ and its vanilla twin, and shows what the zero-computation experts bought."""

import dataclasses
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import BackendUnavailable, ConfigError, DataError
from ..train import (
    METRICS_FILE,
    RECIPE_FILE,
    Recipe,
    TrainResult,
    checkpoints,
    data_table,
    load_recipe,
    prepare,
    read_metrics,
    train,
)
from .demo_compare import Comparison, compare
from .demo_report import print_tables, write_demo_report
from .train import exit_if_interrupted

RESULT_FILE = "demo.json"


def run_demo(out: Path, recipe: Path | None, overrides: Sequence[str]) -> None:
    """Trains both models one after the other on the same samples, then compares and reports.

    An earlier demo's folder is replaced; one that was interrupted with the same recipe is gone on with.

    Raises:
        ConfigError: ``out`` holds something that no demo wrote, or the recipe cannot work.
        DataError: the data cannot be used, or ``out`` cannot be written.
    """
    started = time.perf_counter()
    console = Console()
    recipes = _twins(load_recipe(recipe or demo_recipe(), overrides), out)
    _require_own(out)
    _require_comparable(recipes)
    prepared = prepare(recipes["MoE++"], console)
    console.print(data_table(prepared.data))
    try:
        if not _was_interrupted(out, recipes):
            _begin(out)
        results: dict[str, TrainResult] = {}
        for name, one in recipes.items():
            resume = bool(checkpoints(Path(one.output_dir)))
            if not resume:
                shutil.rmtree(one.output_dir, ignore_errors=True)
            results[name] = train(one, prepared=prepared, console=console, label=f"{name:7}", resume=resume)
            exit_if_interrupted(console, results[name], ["moepp", *sys.argv[1:]])
        with console.status("comparing"):
            runs = {name: Path(one.output_dir) for name, one in recipes.items()}
            comparison = compare(results, runs, recipes["MoE++"])
        minutes = (time.perf_counter() - started) / 60
        print_tables(comparison, console)
        _write_metrics(out, recipes)
        write_demo_report(comparison, out / "report.html", minutes)
        (out / RESULT_FILE).write_text(json.dumps(_result(comparison, minutes), indent=1), encoding="utf-8")
    except OSError as error:
        raise DataError(f"--out={str(out)!r} cannot be written: {error}; make room or choose another") from error
    console.print(f"{minutes:.1f} minutes; report: {out / 'report.html'}", highlight=False, soft_wrap=True)


def demo_recipe() -> Path:
    """The recipe that ships with moepp: in the package when installed from a wheel, beside ``src`` in a checkout."""
    package = Path(__file__).parents[1]
    shipped = package / "recipes" / "demo.yaml"
    return shipped if shipped.is_file() else package.parents[1] / "recipes" / "demo.yaml"


def _twins(recipe: Recipe, out: Path) -> dict[str, Recipe]:
    moepp = dataclasses.replace(recipe, output_dir=str(out / "moepp"))
    vanilla = dataclasses.replace(recipe, output_dir=str(out / "vanilla"), model=recipe.model | {"vanilla": True})
    return {"MoE++": moepp, "vanilla": vanilla}


def _require_own(out: Path) -> None:
    """Refuses a folder that holds anything but an earlier demo."""
    if out.exists() and not (out.is_dir() and ((out / RESULT_FILE).is_file() or not any(out.iterdir()))):
        raise ConfigError(f"--out={str(out)!r} is in use by something else than a demo; choose another or remove it")


def _require_comparable(recipes: dict[str, Recipe]) -> None:
    """Refuses at once what would end the demo after minutes of training."""
    moepp, vanilla = recipes["MoE++"], recipes["vanilla"]
    if moepp.model.get("vanilla"):
        raise ConfigError("model.vanilla=true leaves nothing to compare: the demo trains the vanilla twin by itself")
    for recipe in (moepp, vanilla):
        recipe.model_config()
    steps, logging = moepp.training["max_steps"], moepp.training.get("logging_steps", 10)
    if logging > steps:
        raise ConfigError(f"training.logging_steps={logging} exceeds training.max_steps={steps}; lower it")
    if not moepp.data.validation_fraction and not any(source.validation_split for source in moepp.data.sources):
        raise ConfigError("data.validation_fraction=0 leaves no text to compare the models on; use 0.05")
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendUnavailable("the demo's report needs matplotlib; pip install 'moepp[plots]'")


def _was_interrupted(out: Path, recipes: dict[str, Recipe]) -> bool:
    """Whether ``out`` holds an unfinished demo of the same recipe."""
    result, saved = out / RESULT_FILE, Path(recipes["MoE++"].output_dir) / RECIPE_FILE
    if not result.is_file() or json.loads(result.read_text(encoding="utf-8"))["finished"] or not saved.is_file():
        return False
    return load_recipe(saved) == recipes["MoE++"]


def _begin(out: Path) -> None:
    """Removes an earlier demo, once nothing can be wrong with the recipe and the data any more."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / RESULT_FILE).write_text(json.dumps({"finished": False}), encoding="utf-8")


def _write_metrics(out: Path, recipes: dict[str, Recipe]) -> None:
    with (out / METRICS_FILE).open("w", encoding="utf-8") as file:
        for name, recipe in recipes.items():
            for entry in read_metrics(Path(recipe.output_dir)):
                file.write(json.dumps({"model": name, **entry}) + "\n")


def _result(comparison: Comparison, minutes: float) -> dict[str, Any]:
    models = {name: dataclasses.asdict(one) for name, one in comparison.models.items()}
    for one in models.values():
        del one["log"]  # in metrics.jsonl
    return {"finished": True, "command": sys.argv, "minutes": minutes, "facts": comparison.facts, "models": models}
