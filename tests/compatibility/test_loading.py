"""A saved folder and transformers' Auto classes, with moepp imported and, by the two files it carries, without."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from moepp.data import train_tokenizer
from moepp.model import MoEPPConfig, MoEPPForCausalLM
from moepp.model.remote_code import AUTO_MAP

from ..model.factory import fill, tiny_config, tiny_model, tokens

TEXT = "the cat sat on the mat"
FILES = {"config.json", "generation_config.json", "model.safetensors", "configuration_moepp.py", "modeling_moepp.py"}
CLASSES = [AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification]


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer, saved together; the name is one that no Python module could have."""
    path = tmp_path_factory.mktemp("saved") / "my-model.v1"
    tokenizer = train_tokenizer([TEXT] * 3, 280)
    model = tiny_model(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails when somebody asks a question or transformers warns."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]

    def asked(question: str = "") -> str:
        raise AssertionError(f"asked {question!r}")

    monkeypatch.setattr("builtins.input", asked)
    library = logging.getLogger("transformers")
    library.addHandler(handler)
    yield
    library.removeHandler(handler)
    assert not records


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("trusted", [None, True, False])
def test_auto_classes_load_a_saved_folder_without_a_question_or_a_warning(folder: Path, trusted: bool | None) -> None:
    chosen = {} if trusted is None else {"trust_remote_code": trusted}
    assert type(AutoConfig.from_pretrained(folder, **chosen)) is MoEPPConfig
    ids = AutoTokenizer.from_pretrained(folder, **chosen)(TEXT, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(folder, **chosen)
    assert type(model) is MoEPPForCausalLM
    assert logits(model, ids).isfinite().all()


@pytest.mark.parametrize("auto", CLASSES, ids=lambda auto: auto.__name__)
def test_every_head_loads_by_its_auto_class_and_saves_what_it_loaded(auto: type, tmp_path: Path) -> None:
    model = auto.from_config(tiny_config(num_labels=3)).eval()
    fill(model)
    model.save_pretrained(tmp_path / "first")
    loaded = auto.from_pretrained(tmp_path / "first")
    assert type(loaded) is type(model)
    assert AUTO_MAP[auto.__name__].endswith(f".{type(model).__name__}")
    assert torch.equal(logits(loaded, tokens(2, 9)), logits(model, tokens(2, 9)))
    loaded.save_pretrained(tmp_path / "second")
    first, second = ({file.name: file.read_bytes() for file in (tmp_path / n).iterdir()} for n in ("first", "second"))
    assert first == second


def test_saving_writes_the_auto_map_and_two_files_of_a_few_lines(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} >= FILES
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", *(auto.__name__ for auto in CLASSES)}
    for reference in auto_map.values():
        module, name = reference.split(".")
        text = (folder / f"{module}.py").read_text()
        assert name in text
        assert len(text.splitlines()) <= 6, "our modules are imported, not copied"


def test_a_model_loaded_with_trust_saves_the_short_files_again(folder: Path, tmp_path: Path) -> None:
    """transformers registers what it loads with trust as custom code, whose module it would copy."""
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).save_pretrained(tmp_path)
    MoEPPConfig.register_for_auto_class()
    MoEPPForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    tiny_model().save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == FILES
    for name in ("configuration_moepp.py", "modeling_moepp.py"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_trainer_saves_the_same_files(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path / "run"), report_to=[], use_cpu=True)
    Trainer(tiny_model(), arguments).save_model(str(tmp_path / "saved"))
    assert {file.name for file in (tmp_path / "saved").iterdir()} >= FILES
    assert json.loads((tmp_path / "saved/config.json").read_text())["auto_map"] == AUTO_MAP


FRESH = """
import json, sys
from importlib.abc import MetaPathFinder
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

folder, again, text = sys.argv[1:]

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "moepp":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def refused(**kwargs):
    try:
        AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    except (ImportError, ValueError) as error:
        return str(error)

assert not any(name.split(".")[0] == "moepp" for name in sys.modules)
said = {"untrusted": refused()}
sys.meta_path.insert(0, Missing())
said["missing"] = refused(trust_remote_code=True)
sys.meta_path.pop(0)

trust = {"trust_remote_code": True}
ids = AutoTokenizer.from_pretrained(folder, **trust)(text, return_tensors="pt").input_ids
config = AutoConfig.from_pretrained(folder, **trust)
model = AutoModelForCausalLM.from_pretrained(folder, **trust)
base = AutoModel.from_pretrained(folder, **trust)
classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trust)
model.save_pretrained(again)
said["types"] = [type(it).__module__ + "." + type(it).__name__ for it in (config, model, base, classifier)]
said["experts"] = model.get_experts_implementation()[""]
said["new"] = model.generate(ids, max_new_tokens=6, do_sample=False)[0].tolist()
print("\\n" + json.dumps(said))
"""


def test_a_process_that_never_imported_moepp_loads_with_trust_remote_code(folder: Path, tmp_path: Path) -> None:
    """And without moepp installed, or without trust, is told what to do."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder), str(tmp_path / "again"), TEXT],
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert "trust_remote_code=True" in said["untrusted"]
    assert "pip install moepp" in said["missing"]
    assert said["types"] == [
        "moepp.model.configuration_moepp.MoEPPConfig",
        "moepp.model.modeling_moepp.MoEPPForCausalLM",
        "moepp.model.modeling_moepp.MoEPPModel",
        "moepp.model.heads.MoEPPForSequenceClassification",
    ]
    assert said["experts"] == "auto"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    assert said["new"] == model.generate(ids, max_new_tokens=6, do_sample=False)[0].tolist()
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
