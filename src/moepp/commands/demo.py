"""``moepp demo``: trains a small MoE++ and its vanilla twin, and shows what the zero-computation experts bought."""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import ConfigError
from ..train import Recipe, TrainResult, data_table, load_recipe, prepare, train
from .demo_compare import Comparison, compare
from .demo_report import print_tables, write_demo_report
from .train import exit_if_interrupted

RESULT_FILE = "demo.json"


def run_demo(out: Path, recipe: Path | None, overrides: Sequence[str]) -> None:
    """Trains both models one after the other on the same samples, then compares and reports.

    Raises:
        ConfigError: ``out`` holds something that no demo wrote, or the recipe cannot work.
    """
    started = time.perf_counter()
    console = Console()
    recipes = _twins(load_recipe(recipe or demo_recipe(), overrides), out)
    _require_own(out)
    prepared = prepare(recipes["MoE++"], console)
    console.print(data_table(prepared.data))
    _begin(out)
    results: dict[str, TrainResult] = {}
    for name, one in recipes.items():
        results[name] = train(one, prepared=prepared, console=console, label=f"{name:7}")
        exit_if_interrupted(console, results[name], ["moepp", *sys.argv[1:]])
    with console.status("comparing"):
        comparison = compare(results, {name: Path(one.output_dir) for name, one in recipes.items()}, recipes["MoE++"])
    minutes = (time.perf_counter() - started) / 60
    _write_metrics(out, recipes)
    (out / RESULT_FILE).write_text(json.dumps(_result(comparison, minutes), indent=1), encoding="utf-8")
    write_demo_report(comparison, out / "report.html", minutes)
    print_tables(comparison, console)
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


def _begin(out: Path) -> None:
    """Removes an earlier demo, once nothing can be wrong with the recipe and the data any more."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / RESULT_FILE).write_text(json.dumps({"finished": False}), encoding="utf-8")


def _write_metrics(out: Path, recipes: dict[str, Recipe]) -> None:
    with (out / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for name, recipe in recipes.items():
            for line in (Path(recipe.output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                file.write(json.dumps({"model": name, **json.loads(line)}) + "\n")


def _result(comparison: Comparison, minutes: float) -> dict[str, Any]:
    models = {name: dataclasses.asdict(one) for name, one in comparison.models.items()}
    for one in models.values():
        del one["log"]  # in metrics.jsonl
    return {"finished": True, "command": sys.argv, "minutes": minutes, "facts": comparison.facts, "models": models}
