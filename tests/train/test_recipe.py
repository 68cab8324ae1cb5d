"""Recipes: reading, overriding, writing, and one line for each mistake."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from moepp.data import SourceSpec
from moepp.errors import ConfigError
from moepp.train import Recipe, load_recipe
from moepp.train.recipe import save_recipe

from .tiny import recipe_of, write_recipe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", recipe_of("texts", "out"))


def test_a_recipe_has_what_the_file_says_and_the_papers_values_elsewhere(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.output_dir == "out"
    assert recipe.data.sources[0] == SourceSpec(name="prose", weight=3.0, files=["texts/prose.jsonl"])
    assert recipe.training["max_steps"] == 12
    o = recipe.optimization
    assert (o.learning_rate, o.warmup_steps) == (5e-3, 4)
    assert (o.warmup_start, o.beta1, o.beta2, o.weight_decay, o.max_grad_norm) == (1e-7, 0.9, 0.95, 0.1, 1.0)
    assert recipe.model_config().router_aux_loss_coef == 0.01


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("model.tau=0.5", lambda r: r.model.get("tau"), 0.5),
        ("model.tau=5e-1", lambda r: r.model.get("tau"), 0.5),
        ("model.capacity_factor=null", lambda r: r.model.get("capacity_factor", "unset"), None),
        ("model.capacity_factor=", lambda r: r.model.get("capacity_factor", "unset"), None),
        ("training.max_steps=50", lambda r: r.training["max_steps"], 50),
        ("training.bf16=true", lambda r: r.training.get("bf16"), True),
        ("training.save_strategy=no", lambda r: r.training.get("save_strategy"), "no"),
        ("optimization.learning_rate=1e-3", lambda r: r.optimization.learning_rate, 1e-3),
        ("data.sources[1].weight=2", lambda r: [source.weight for source in r.data.sources], [3.0, 2.0]),
        ("data.sources=[{name: a, files: [b]}]", lambda r: r.data.sources, [SourceSpec("a", files=["b"])]),
        ("output_dir=a=b", lambda r: r.output_dir, "a=b"),
        ("tokenizer.path=some/folder", lambda r: r.tokenizer.path, "some/folder"),
    ],
)
def test_an_override_changes_one_field_and_leaves_the_others(path: Path, override: str, read: Any, value: Any) -> None:
    changed, plain = load_recipe(path, [override]), load_recipe(path)
    assert read(changed) == value
    assert read(plain) != value
    section = re.split(r"[.=\[]", override)[0]
    assert all(getattr(changed, name) == getattr(plain, name) for name in set(vars(plain)) - {section})


def test_a_section_that_is_overridden_keeps_its_other_fields(path: Path) -> None:
    training = load_recipe(path, ["training={bf16: true}"]).training
    assert training == load_recipe(path).training | {"bf16": True}


def test_the_last_of_two_overrides_holds(path: Path) -> None:
    assert load_recipe(path, ["seed=1", "seed=2"]).seed == 2


def test_a_saved_recipe_reads_back_equal(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, ["model.capacity_factor=null", "training.logging_steps=0.5", "data.sources[0].weight=2"])
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe


def write(path: Path, **fields: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


def test_a_recipe_is_merged_onto_what_it_extends_and_the_later_one_wins(path: Path, tmp_path: Path) -> None:
    write(tmp_path / "parts" / "small.yaml", extends="../recipe.yaml", model={"tau": 0.5, "top_k": 1}, seed=1)
    write(tmp_path / "parts" / "other.yaml", optimization={"beta2": 0.99}, data={"sources": [{"name": "x"}]})
    own = write(tmp_path / "own.yaml", extends=["parts/small.yaml", "parts/other.yaml"], seed=2, model={"top_k": 3})
    plain, extended = load_recipe(path), load_recipe(own, ["optimization.beta1=0.8", "data.sources[0].files=[y]"])
    assert extended.seed == 2
    assert extended.model == plain.model | {"tau": 0.5, "top_k": 3}
    assert extended.data.sources == [SourceSpec(name="x", files=["y"])], "a list replaces a list"
    assert (extended.optimization.beta1, extended.optimization.beta2) == (0.8, 0.99)
    assert extended.optimization.learning_rate == plain.optimization.learning_rate


def test_a_recipe_that_extends_others_is_saved_whole(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "own.yaml", extends=path.name, seed=5))
    save_recipe(recipe, tmp_path / "elsewhere.yaml")
    path.unlink()
    assert load_recipe(tmp_path / "elsewhere.yaml") == recipe
    assert "extends" not in (tmp_path / "elsewhere.yaml").read_text()


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("none.yaml", r"^recipe '\S+none\.yaml' does not exist; \S+own\.yaml extends it; check the path$"),
        ("own.yaml", r"^recipe '\S+own\.yaml' extends itself: \S+own\.yaml -> \S+own\.yaml; cut the circle$"),
        ("b.yaml", r"^recipe '\S+own\.yaml' extends itself: \S+own\.yaml -> \S+b\.yaml -> \S+own\.yaml; cut the"),
        (["recipe.yaml", "list.yaml"], r"^recipe '\S+list\.yaml' must hold keys and values, not a list$"),
        (3, r"^extends=3 of \S+own\.yaml must be a file's name or a list of them$"),
        ([1], r"^extends=\[1\] of \S+own\.yaml must be a file's name or a list of them$"),
        (None, r"^extends=None of \S+own\.yaml must be a file's name or a list of them$"),
    ],
)
def test_what_cannot_be_extended_is_named(path: Path, tmp_path: Path, extends: Any, message: str) -> None:
    write(tmp_path / "b.yaml", extends="own.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match=message) as error:
        load_recipe(write(tmp_path / "own.yaml", extends=extends))
    assert "\n" not in str(error.value)


def test_two_ways_to_one_file_are_no_circle(path: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", extends=path.name, seed=1)
    write(tmp_path / "b.yaml", extends=path.name, license="mit")
    recipe = load_recipe(write(tmp_path / "own.yaml", extends=["b.yaml", "a.yaml"]))
    assert (recipe.seed, recipe.license) == (1, "mit")


@pytest.mark.parametrize("name", ["demo"])
def test_the_recipes_that_ship_are_valid(name: str) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")
    assert recipe.model_config().max_position_embeddings >= recipe.data.sequence_length


def test_vanilla_is_the_twin_of_the_same_fields(path: Path) -> None:
    ours = load_recipe(path).model_config()
    twin = load_recipe(path, ["model.vanilla=true"]).model_config()
    assert twin.moe == ours.moe.vanilla()
    assert twin.hidden_size == ours.hidden_size


def test_a_preset_takes_fields_beside_it(path: Path) -> None:
    config = load_recipe(path, ["model={preset: moepp-0.6b-8+4, tau: 0.5}", "model.hidden_size=64"]).model_config()
    assert (config.tau, config.hidden_size, config.num_ffn_experts) == (0.5, 64, 3)


def test_fields_that_the_caller_fills_in_give_way_to_the_recipes(path: Path) -> None:
    assert load_recipe(path).model_config(vocab_size=300).vocab_size == 300
    assert load_recipe(path, ["model.vocab_size=400"]).model_config(vocab_size=300).vocab_size == 400


NOT_A_KEY = "is not a recipe key; did you mean"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # Names: of a section, a key, a nested key, a key of the free-form sections.
        ("modle.tau=1", rf"^modle {NOT_A_KEY} 'model'\?$"),
        ("sede=1", rf"^sede {NOT_A_KEY} 'seed'\?$"),
        ("data.sequence_lenght=8", rf"^data\.sequence_lenght {NOT_A_KEY} 'sequence_length'\?$"),
        ("data.sources[1].wieght=2", rf"^data\.sources\[1\]\.wieght {NOT_A_KEY} 'weight'\?$"),
        ("optimization.lr=1", r"^optimization\.lr is not a recipe key; choose one of beta1, beta2, "),
        ("model.tua=1", r"^model\.tua is not a field; did you mean 'tau'\?$"),
        ("training.max_step=1", r"^training\.max_step is not a field; did you mean 'max_steps'\?$"),
        # The form of an override.
        *[(o, rf"^override '{o}' is not of the form key=value, such as model\.tau=0\.5$") for o in ("seed", "=5", "")],
        ("model.tau=[", r"^override 'model\.tau=\[' is not YAML: while parsing a flow node"),
        # Types.
        ("seed=abc", r"^seed: Value 'abc' of type 'str' could not be converted to Integer$"),
        ("seed=1.5", r"^seed: Value '1\.5' of type 'float' could not be converted to Integer$"),
        ("seed={x: 1}", r"^seed: Value \S+ \S+ of type 'DictConfig' could not be converted to Integer$"),
        ("data.sequence_length=true", r"^data\.sequence_length: Value 'True' of type 'bool'"),
        ("optimization.learning_rate=abc", r"^optimization\.learning_rate: Value 'abc' of type 'str'"),
        ("output_dir=null", r"^output_dir: Incompatible value 'None' for field of type 'str'$"),
        ("model.tau=abc", r"^model\.tau='abc' must be of type float$"),
        ("model.tau=true", r"^model\.tau=True must be of type float$"),
        ("model.top_k=2.0", r"^model\.top_k=2\.0 must be of type int$"),
        ("model.gating_residual=1", r"^model\.gating_residual=1 must be of type bool$"),
        ("model.gate=mlp", r"^model\.gate='mlp' must be one of linear, tanh_mlp$"),
        ("model.capacity_factor=a", r"^model\.capacity_factor='a' must be of type float \| None$"),
        ("training.max_steps=1.5", r"^training\.max_steps=1\.5 must be of type int$"),
        ("training.bf16=1", r"^training\.bf16=1 must be of type bool$"),
        ("model=5", r"^model: Cannot assign int to Dict\[str, Any\]$"),
        ("data=5", r"^data must hold keys and values, not 5$"),
        ("data.sources=5", r"^data\.sources=5 must be a list$"),
        ("data.sources=[5]", r"^data\.sources\[0\] must hold keys and values, not 5$"),
        # Values.
        ("seed=-1", r"^seed=-1 is outside \[0, 2\*\*32\); choose another$"),
        *[
            (f"training.{name}=0", rf"^training\.{name}=0 must be at least 1$")
            for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
        ],
        *[
            (f"training.{name}=0", rf"^training\.{name}=0 must be positive; below 1 it is a share of max_steps$")
            for name in ("logging_steps", "eval_steps", "save_steps")
        ],
        ("optimization.learning_rate=0", r"^optimization\.learning_rate=0\.0 must be a number > 0$"),
        ("optimization.learning_rate=.nan", r"^optimization\.learning_rate=nan must be a number > 0$"),
        ("optimization.beta2=1", r"^optimization\.beta2=1\.0 must be in \[0, 1\)$"),
        ("optimization.warmup_steps=-1", r"^optimization\.warmup_steps=-1 must be a number >= 0$"),
        ("optimization.weight_decay=.inf", r"^optimization\.weight_decay=inf must be a number >= 0$"),
        # What is missing, and what stands elsewhere.
        ("output_dir=???", r"^output_dir is missing in \S+recipe\.yaml; every recipe needs it$"),
        ("data.sources=[{weight: 1}]", r"^data\.sources\[0\]\.name is missing in \S+recipe\.yaml"),
        (
            "training.learning_rate=1",
            r"^training\.learning_rate is not set here; set optimization\.learning_rate$",
        ),
        ("training.output_dir=x", r"^training\.output_dir is not set here; set output_dir$"),
        ("training.report_to=wanb", r"^training\.report_to='wanb' does not exist; did you mean 'wandb'\?$"),
        (
            "training.report_to=[none,mlflow]",
            r"^training\.report_to='none' does not exist beside others; leave it out$",
        ),
        ("training.report_to=3", r"^training\.report_to=3 must be "),
        ("training.save_only_model=true", r"^training\.save_only_model is not set here; set nothing: a checkpoint has"),
        ("training.disable_tqdm=true", r"^training\.disable_tqdm is not set here; "),
    ],
)
def test_a_mistake_is_named_with_its_path_and_remedy(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_recipe(path, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^output_dir is missing in \S+; every recipe needs it$"),
        ("training: {max_steps: 3}", r"^output_dir is missing in \S+; every recipe needs it$"),
        ("output_dir: x", r"^training\.max_steps is missing; say how many optimizer steps to train$"),
        ("seed: [", r"^recipe '\S+' is not YAML: while parsing a flow node"),
        ("seed:\n\t- 1", r"^recipe '\S+' is not YAML: .*cannot start any token"),
        ("seed: 1\nseed: 2", r"^recipe '\S+' is not YAML: .*duplicate key seed"),
        ("- seed: 1", r"^recipe '\S+' must hold keys and values, not a list$"),
        (
            "hello",
            r"^hello is not a recipe key; choose one of data, distributed, initial_weights, license, ",
        ),
        ("output_dir: ${nowhere}", r"^output_dir: Interpolation key 'nowhere' not found$"),
        (b"output_dir: caf\xe9", r"^recipe '\S+' is not YAML: 'utf-8' codec can't decode byte 0xe9"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as error:
        load_recipe(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [".", "nowhere.yaml"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^recipe '\S+' does not exist; check the path$"):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.preset=moepp-0.6b-8+5", r"^model\.preset='moepp-0\.6b-8\+5' does not exist; did you mean \S+$"),
        ("model.preset=x", r"^model\.preset='x' does not exist; choose one of debug, moe-0\.6b-8, "),
        ("model.num_attention_heads=3", r"^model\.num_attention_heads=3 does not divide model\.hidden_size=32; "),
        (
            "model.num_key_value_heads=0",
            r"^model\.num_key_value_heads=0 must be an integer >= 1$",
        ),
        ("model.hidden_size=0", r"^model\.hidden_size=0 must be an integer >= 1$"),
        ("model.top_k=8", r"^moe\.top_k=8 exceeds the 7 experts of this layer; lower top_k or add experts$"),
        ("model.num_ffn_experts=0", r"^moe\.num_ffn_experts=0 must be an integer >= 1$"),
        ("model.tau=0", r"^moe\.tau=0 must be a number > 0"),
    ],
)
def test_a_model_that_cannot_be_is_refused(path: Path, override: str, message: str) -> None:
    recipe = load_recipe(path, [override])
    with pytest.raises(ConfigError, match=message):
        recipe.model_config()


def test_a_recipe_made_in_python_is_checked_like_a_file() -> None:
    Recipe(output_dir="out", training={"max_steps": 1})
    with pytest.raises(ConfigError, match=r"^model\.tua is not a field; "):
        Recipe(output_dir="out", model={"tua": 1}, training={"max_steps": 1})


def test_saving_writes_plain_yaml(path: Path, tmp_path: Path) -> None:
    save_recipe(load_recipe(path), tmp_path / "saved.yaml")
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["model"]["num_ffn_experts"] == 3
