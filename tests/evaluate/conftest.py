"""Tasks, a model and a library small enough to look at; the harness's own list cut down to what the paper uses."""

import json
import shutil
import sysconfig
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from moepp.data import load_held_out_functions, load_python_library, train_tokenizer
from moepp.evaluate import stdlib_tasks
from moepp.model import MoEPPForCausalLM

from ..model.factory import tiny_model

ANIMALS = {
    "The cow": ["eats grass all day long", "flies south when it is cold", "lives in the sea", "reads the news aloud"],
    "We all know that the fish": [
        "swims below the waves",
        "climbs up every tree",
        "sings loudly at night",
        "has four legs",
    ],
    "At night the owl": [
        "hunts mice in the dark",
        "gives milk twice a day",
        "pulls a heavy cart",
        "eats hay",
    ],
    "The ant": ["carries its own weight", "roars at the moon", "barks at cats", "flies planes"],
    "A dog that is not asleep": [
        "barks at the cat",
        "lays eggs in the reeds",
        "spins a web",
        "grows on trees",
    ],
}


FAMILIES = ("arc", "hellaswag", "lambada", "logiqa", "mmlu/default", "nq_open", "piqa", "sciq", "super_glue/boolq",
            "winogrande")  # fmt: skip


@cache
def _entries(path: Path) -> dict[str, Any]:
    """What the harness finds in a folder; the folder of its own tasks is read in part."""
    import lm_eval.tasks
    from lm_eval.tasks._index import TaskIndex

    own = path == Path(lm_eval.tasks.__file__).parent
    return _build_index(TaskIndex)([path / family for family in FAMILIES] if own else [path])


@cache
def _build_index(index: Any) -> Any:
    return index.build  # as it is before a test replaces it


@pytest.fixture(autouse=True)
def short_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all of the harness's fourteen thousand task files takes nine seconds."""
    index = pytest.importorskip("lm_eval.tasks._index").TaskIndex  # `make gpu` collects these tests, no more
    _build_index(index)

    def build(paths: list[Path]) -> dict[str, Any]:
        return {name: entry for path in paths for name, entry in _entries(Path(path)).items()}

    monkeypatch.setattr(index, "build", staticmethod(build))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a machine has cached, or could download, changes no test."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "data-sets")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = [f"{animal} {does}." for animal, all_ in ANIMALS.items() for does in all_]
    return train_tokenizer(["\n".join(texts)] * 4, 320)


@pytest.fixture(scope="session")
def model(tokenizer: PreTrainedTokenizerFast) -> MoEPPForCausalLM:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return tiny_model(vocab_size=len(tokenizer), max_position_embeddings=48, **ids)


@pytest.fixture(scope="session")
def saved(
    model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the harness's format: a choice, a generation, one whose data exists nowhere, and groups of them."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": animal, "choices": [f" {choice}" for choice in choices], "label": 0, "answer": choices[0]}
        for animal, choices in ANIMALS.items()
    ]
    data = folder / "animals.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    local = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "question",
        "target_delimiter": "",
    }
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    choice = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "label"}
    answer = {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    files: dict[str, dict[str, Any]] = {
        "local_choice": {"task": "local_choice", **local, **choice, "metric_list": metrics},
        "local_answer": {"task": "local_answer", **local, **answer},
        "local_shots": {
            "task": "local_shots",
            **local,
            **choice,
            "metric_list": metrics,
            "num_fewshot": 2,
            "fewshot_split": "test",
        },
        "local_nowhere": {
            "task": "local_nowhere",
            **local,
            **choice,
            "metric_list": metrics,
            "dataset_path": "no-such-owner/no-such-data",
            "dataset_kwargs": {},
        },
        "local_text": {
            "task": "local_text",
            **local,
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}} {{answer}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        "local_mean": {
            "group": "local_mean",
            "group_alias": "both",
            "task": ["local_choice", "local_answer"],
            "aggregate_metric_list": [{"metric": "acc"}],
        },
        "local_all": {"group": "local_all", "task": ["local_choice", "local_nowhere"]},
    }
    for name, config in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A few modules of this Python's library instead of all: six that are held out and four to train on."""
    root, real = tmp_path_factory.mktemp("library"), Path(sysconfig.get_path("stdlib"))
    for name in ("json/decoder", "json/encoder", "graphlib", "netrc", "shelve", "filecmp", "textwrap", "heapq", "queue",
                 "bisect"):  # fmt: skip
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(real / f"{name}.py", root / f"{name}.py")
    small = partial(load_python_library, str(root))
    monkeypatch.setattr(stdlib_tasks, "load_python_library", small)
    monkeypatch.setattr(stdlib_tasks, "load_held_out_functions", partial(load_held_out_functions, str(root)))
    monkeypatch.setattr("moepp.data.sources.load_python_library", small)
    stdlib_tasks.stdlib_items.cache_clear()
    yield root
    stdlib_tasks.stdlib_items.cache_clear()
