"""The group ``paper``: paper.md's eleven tasks and shots, as the harness itself resolves them, without their data."""

from typing import Any

import pytest

from moepp.evaluate.harness import members, task_manager

# The paper's order, shots and Table 4; the metrics are ours to choose.
PAPER = {
    "SciQ": ("sciq", 0, "acc", 89.7),
    "PIQA": ("piqa", 0, "acc", 77.6),
    "WinoGrande": ("winogrande", 0, "acc", 63.1),
    "ARC-E": ("arc_easy", 0, "acc", 66.5),
    "ARC-C": ("arc_challenge", 25, "acc_norm", 42.3),
    "HellaSwag": ("hellaswag", 10, "acc_norm", 72.3),
    "LogiQA": ("logiqa", 0, "acc_norm", 28.4),
    "BoolQ": ("boolq", 32, "acc", 68.3),
    "LAMBADA": ("lambada_openai", 0, "acc", 67.4),
    "NQ": ("nq_open", 32, "exact_match", 18.1),
}


class Resolved:
    """Stands for the harness's task: keeps the configuration and loads no data."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.task_name = config["task"]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """By label: a group and the configurations of its tasks."""
    from lm_eval.api.group import Group
    from lm_eval.tasks import _factory

    monkeypatch.setattr(_factory, "ConfigurableTask", Resolved)
    monkeypatch.setattr(Group, "get_all_tasks", lambda self, recursive=True: list(_leaves(self)))
    manager = task_manager(["paper"])
    loaded = {name: manager.load([name]) for name in members(manager, "paper")}
    return {all_["groups"][name].alias: (all_["groups"][name], all_["tasks"]) for name, all_ in loaded.items()}


def _leaves(group: Any) -> Any:
    for child in group:
        yield from _leaves(child) if hasattr(child, "child_names") else [child]


def test_the_group_has_the_eleven_tasks_in_the_papers_order(groups) -> None:
    assert list(groups) == [*PAPER, "MMLU"]


@pytest.mark.parametrize("label", PAPER)
def test_a_task_is_the_harness_own_with_the_papers_shots(groups, label: str) -> None:
    name, shots, metric, published = PAPER[label]
    group, tasks = groups[label]
    assert list(tasks) == [name]
    config = tasks[name].config
    assert config["num_fewshot"] == shots
    assert "lm_eval/tasks/" in config["metadata"]["config_source"].replace("\\", "/")
    assert metric in {entry["metric"] for entry in config["metric_list"]}
    (aggregated,) = group.aggregate_metric_list
    assert aggregated.metric == metric
    assert group.metadata["published"] == published
    if aggregated.filter_list:
        assert {entry["name"] for entry in config["filter_list"]} >= set(aggregated.filter_list)
    if shots:
        assert config.get("training_split") or config.get("fewshot_split"), "shots come from somewhere"


def test_mmlu_is_the_harness_57_subjects_with_five_shots(groups) -> None:
    group, tasks = groups["MMLU"]
    assert len(tasks) == 57
    assert all(name == task.config["task"] and name.startswith("mmlu_") for name, task in tasks.items())
    assert {task.config["num_fewshot"] for task in tasks.values()} == {5}
    assert {task.config["dataset_path"] for task in tasks.values()} == {"cais/mmlu"}
    assert [entry.metric for entry in group.aggregate_metric_list] == ["acc"]


def test_published_scores_average_to_the_papers(groups) -> None:
    published = [group.metadata["published"] for group, _ in groups.values()]
    assert sum(published) / 11 == pytest.approx(56.2, abs=0.05)
