"""lm-evaluation-harness on one of our models, task by task: what cannot be had is skipped, and routing is counted.

``lm_eval.evaluate`` does the evaluating. ``lm_eval.simple_evaluate``, which wraps it, would describe the machine anew
for every task, for seconds each; what it sets before (seeds, shots) is set here the same.
"""

import importlib.util
import logging
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jinja2 import TemplateError

from ..errors import BackendUnavailable, ConfigError, DataError, first_line, nearest
from ..model import MoEPPForCausalLM
from .offline import hub_only_if_reachable
from .scores import ACCURACIES, Evaluation, Score, Skipped
from .stdlib_tasks import VALIDATION_FRACTION, training_texts

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerBase

    from .language_model import RoutedLM

TASKS = Path(__file__).parent / "tasks"
SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""The harness's own."""
WRONG = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, TemplateError)
"""What comes of a task's file that the harness can do nothing with."""
BOOTSTRAP = 1000  # samples for the standard error of a perplexity; accuracies have a formula


def evaluate_tasks(
    model: MoEPPForCausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    names: Sequence[str],
    *,
    include_path: Sequence[Path] = (),
    limit: int | None = None,
    batch_size: int = 16,
    validation_fraction: float = VALIDATION_FRACTION,
    announce: Callable[[str], object] = lambda text: None,
) -> Evaluation:
    """Evaluates tasks and groups by name: ``"paper"``, ``"stdlib"``, or any of the harness's.

    Args:
        include_path: folders with more tasks in the harness's format.
        limit: items per task (of a group, per member); None for all.
        validation_fraction: what of the standard library was held out when the model was trained.
        announce: told what is done now, in words.

    Raises:
        BackendUnavailable: lm-eval is not installed.
        ConfigError: there is no such task; the nearest is named.
        DataError: a folder of ``include_path`` does not exist, or a task's file is wrong.
    """
    require_harness()
    from .language_model import RoutedLM, ShuffledLM, UnigramLM

    manager = task_manager(names, include_path, validation_fraction, announce)
    units = list(dict.fromkeys(unit for name in names for unit in members(manager, name)))
    baselines: dict[str, RoutedLM] = {}
    scores: list[Score] = []
    skipped: list[Skipped] = []
    all_ours = all(_is_stdlib(manager, name) for name in units)
    with _quiet_harness(), nullcontext() if all_ours else hub_only_if_reachable():
        announce("reading the tasks' data")
        loaded: dict[str, Any] = {}
        for name in units:  # all of them first: a task that cannot work is said before the hours that others take
            try:
                loaded[name] = _load(manager, name)
            except _Missing as missing:
                skipped.append(Skipped(name, _label(manager, name), str(missing)))
        lm = RoutedLM(model, tokenizer, batch_size=batch_size)
        for number, name in enumerate(list(loaded), start=1):
            announce(f"{_label(manager, name)}, {number} of {len(units) - len(skipped)}")
            for row in _rows(name, loaded.pop(name)):
                try:
                    score = _score(lm, manager, row, limit)
                    if _metadata(row).get("baselines"):
                        if not baselines:
                            texts = training_texts(validation_fraction)
                            baselines["unigram"] = UnigramLM(model, tokenizer, texts)
                            baselines["shuffled contexts"] = ShuffledLM(model, tokenizer, batch_size=batch_size)
                        for kind, baseline in baselines.items():
                            results = _evaluate(baseline, manager, row, limit)["results"][_name(row)]
                            score.baselines[kind] = _metric(row, results)[1]
                    scores.append(score)
                except DataError as error:  # this model cannot read this task
                    skipped.append(Skipped(_name(row), _alias(row), first_line(error)))
    return Evaluation(scores, skipped)


def require_harness() -> None:
    """Raises where lm-eval is missing."""
    if importlib.util.find_spec("lm_eval") is None:
        raise BackendUnavailable("evaluating on tasks needs lm-evaluation-harness; pip install 'moepp[eval]'")


def task_manager(
    names: Sequence[str],
    include_path: Sequence[Path] = (),
    validation_fraction: float = VALIDATION_FRACTION,
    announce: Callable[[str], object] = lambda text: None,
) -> "TaskManager":
    """What knows the tasks: ours, those of ``include_path`` and, where ``names`` need them, the harness's own.

    Raises:
        ConfigError: a name does not exist anywhere.
        DataError: a folder of ``include_path`` does not exist.
    """
    from lm_eval.tasks import TaskManager

    for folder in include_path:
        if not folder.is_dir():
            raise DataError(f"--include-path={str(folder)!r} is no folder; give one with the harness's task files")
    metadata: Any = {"validation_fraction": validation_fraction}
    paths = [TASKS, *include_path]
    manager = TaskManager(include_path=list(paths), include_defaults=False, metadata=metadata)
    if not all(_is_complete(manager, name) for name in names):
        announce("reading the harness's list of tasks")  # fourteen thousand files
        manager = TaskManager(include_path=list(paths), metadata=metadata)
    for name in names:
        if name not in manager.task_index:
            close = nearest(name, manager.all_tasks)
            remedy = close if close.startswith("did you mean") else "lm-eval ls tasks lists the harness's"
            raise ConfigError(f"--tasks: there is no task {name!r}; {remedy}")
    return manager


def members(manager: "TaskManager", name: str) -> list[str]:
    """What is evaluated, and skipped, by itself: a tag's tasks, the members of a group that has no score of its own."""
    entry = manager.task_index[name]
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    config = entry.cfg or {}
    inner = config.get("task")
    if not isinstance(inner, list) or config.get("aggregate_metric_list"):
        return [name]
    if not all(isinstance(member, str) and member in manager.task_index for member in inner):
        return [name]
    return [unit for member in inner for unit in members(manager, member)]


def _is_complete(manager: "TaskManager", name: str) -> bool:
    """Whether the manager knows all that a name leads to."""
    entry = manager.task_index.get(name)
    inner = None if entry is None else (entry.cfg or {}).get("task")
    if not isinstance(inner, list):
        return entry is not None
    members = (member if isinstance(member, str) else member.get("task", member.get("group")) for member in inner)
    return all(isinstance(member, str) and _is_complete(manager, member) for member in members)


def _is_stdlib(manager: "TaskManager", name: str) -> bool:
    """Whether the task is one of ours, whose data is made here."""
    file = manager.task_index[name].yaml_path
    return file is not None and TASKS / "stdlib" in file.parents


class _Missing(Exception):
    """A task's data cannot be had."""


def _load(manager: "TaskManager", name: str) -> Any:
    """A task with its data.

    Raises:
        _Missing: its data, or a library that it needs, cannot be had.
        DataError: its file is wrong.
    """
    from datasets.exceptions import DatasetsError

    try:
        return manager.load([name])
    except (OSError, ImportError, DatasetsError, DataError) as error:
        raise _Missing(first_line(error)) from error
    except WRONG as error:
        # These two are also how the data sets' library says that it has no data, or can no longer read it.
        modules = {frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in walk_tb(error.__traceback__)}
        if isinstance(error, ValueError | RuntimeError) and "datasets" in modules:
            raise _Missing(first_line(error)) from error
        file = manager.task_index[name].yaml_path
        raise DataError(f"{file} is no task: {type(error).__name__}: {first_line(error)}; mend it") from error


def _rows(name: str, loaded: Any) -> list["Task | Group"]:
    group = loaded.get("groups", {}).get(name)
    return [group] if group is not None and group.has_aggregation else list(loaded["tasks"].values())


def _score(lm: "RoutedLM", manager: "TaskManager", row: "Task | Group", limit: int | None) -> Score:
    lm.reset()
    found = _evaluate(lm, manager, row, limit)
    results = found["results"][_name(row)]
    metric, value, error = _metric(row, results)
    tasks = _tasks(row)
    return Score(
        task=_name(row),
        label=_alias(row),
        metric=metric,
        score=value,
        standard_error=error,
        chance=_chance(tasks),
        shots=max(found["n-shot"][task.task_name] for task in tasks),
        items=sum(found["n-samples"][task.task_name]["effective"] for task in tasks),
        requests_cut=lm.cut,
        ffn_per_token=lm.ffn_per_token(),
        tokens=int(lm.stats[0].tokens) if lm.stats else 0,
        metrics={key: value for key, value in results.items() if isinstance(value, float)},
        baselines={},
        published=_metadata(row).get("published"),
    )


def _evaluate(lm: "RoutedLM", manager: "TaskManager", row: "Task | Group", limit: int | None) -> Any:
    """The harness's results, with the seeds and shots that its own command sets."""
    from lm_eval.evaluator import evaluate

    loaded = manager.load([row])  # pyright: ignore[reportArgumentType]
    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])
    torch.manual_seed(SEEDS["torch"])
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEEDS["fewshot"])
    with redirect_stdout(sys.stderr):  # where it says what it bootstraps
        return evaluate(lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False)


def _metric(row: Any, results: dict[str, Any]) -> tuple[str, float, float | None]:
    """The name, value and standard error of what a group aggregates, or of a task's first accuracy, or first metric."""
    wanted = [entry.metric for entry in getattr(row, "aggregate_metric_list", None) or []]
    keys = [key for key in results if "," in key and "_stderr," not in key]
    preferred = [key for name in (*wanted, *ACCURACIES) for key in keys if key.split(",")[0] == name]
    name, filter_ = (preferred or keys)[0].split(",", 1)
    error = results.get(f"{name}_stderr,{filter_}")
    return name, float(results[f"{name},{filter_}"]), float(error) if isinstance(error, float) else None


def _chance(tasks: Iterable["Task"]) -> float:
    """The mean of 1/choices over the items of the tasks; 0 for what is not multiple choice."""
    shares: list[float] = []
    for task in tasks:
        choices = Counter(instance.doc_id for instance in task.instances)
        multiple = task.OUTPUT_TYPE == "multiple_choice"
        shares += [1 / count if multiple else 0.0 for count in choices.values()]
    return statistics.mean(shares)


def _tasks(row: Any) -> list["Task"]:
    return row.get_all_tasks() if hasattr(row, "get_all_tasks") else [row]


def _name(row: Any) -> str:
    return row.name if hasattr(row, "get_all_tasks") else row.task_name


def _alias(row: Any) -> str:
    alias = row.alias if hasattr(row, "get_all_tasks") else row.get_config("task_alias")
    return alias or _name(row)


def _metadata(row: Any) -> dict[str, Any]:
    return (row.metadata if hasattr(row, "get_all_tasks") else row.get_config("metadata")) or {}


def _label(manager: "TaskManager", name: str) -> str:
    config = manager.task_index[name].cfg or {}
    return config.get("group_alias") or config.get("task_alias") or name


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Keeps back what the harness warns of for every request, and a progress bar of the quickest of its steps."""
    import lm_eval.api.task

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, lm_eval.api.task.tqdm
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda items, **_: items  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
