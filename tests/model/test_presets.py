"""The presets are the models of the paper's Table 2."""

import pytest

from moepp.config import ExpertLayout
from moepp.errors import ConfigError
from moepp.model import PRESETS, account, preset

SMALL = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
# Table 2: twin, sizes, width of a head, experts (ffn, constant, copy, zero), total and activated (billions).
TABLE_2 = {
    "moepp-0.6b-8+4": ("moe-0.6b-8", SMALL, 64, ExpertLayout(8, 2, 1, 1), 0.6, 0.2),
    "moepp-1b-16+4": ("moe-1b-16", SMALL, 64, ExpertLayout(16, 2, 1, 1), 1, 0.2),
    "moepp-2b-32+8": ("moe-2b-32", SMALL, 64, ExpertLayout(32, 6, 1, 1), 2, 0.2),
    "moepp-7b-16+4": ("moe-7b-16", LARGE, 96, ExpertLayout(16, 2, 1, 1), 7, 1.2),
}
PAPER = [name for pair in TABLE_2 for name in (pair, TABLE_2[pair][0])]


@pytest.mark.parametrize("name", TABLE_2)
def test_preset_has_the_sizes_of_table_2(name: str) -> None:
    twin, sizes, head_dim, layout, _, _ = TABLE_2[name]
    config = preset(name)
    assert {field: getattr(config, field) for field in sizes} == sizes
    assert (config.head_dim, config.num_key_value_heads) == (head_dim, config.num_attention_heads)
    assert config.moe.layout() == layout
    assert (config.vocab_size, config.max_position_embeddings, config.tie_word_embeddings) == (65536, 2048, False)
    assert (config.top_k, config.tau, config.capacity_factor, config.router_aux_loss_coef) == (2, 0.75, 1.1, 0.01)
    assert preset(twin).to_dict() == config.vanilla().to_dict()
    assert preset(twin).moe.layout() == ExpertLayout(layout.ffn, 0, 0, 0)


@pytest.mark.parametrize("name", TABLE_2)
def test_preset_has_the_parameters_of_table_2(name: str) -> None:
    """Within a tenth: the table rounds 0.58 up to 0.6 and cuts 7.68 down to 7."""
    twin, _, _, _, total, activated = TABLE_2[name]
    for config in (preset(name), preset(twin)):
        counted = account(config)
        assert counted.total_parameters / 1e9 == pytest.approx(total, rel=0.1)
        # Its activated parameters leave the embedding table out, of which a token reads one row. With it, all of them
        # would be 11 % off and more.
        lookup = config.vocab_size * config.hidden_size
        assert (counted.activated_parameters - lookup) / 1e9 == pytest.approx(activated, rel=0.1)
    # "MoE++: <=": an average token activates less than any token of the twin does.
    assert account(preset(name)).expected_activated_parameters < account(preset(twin)).activated_parameters


def test_the_7b_model_has_the_released_checkpoints_parameters() -> None:
    assert round(account(preset("moepp-7b-16+4")).total_parameters / 1e9, 3) == 7.677


@pytest.mark.parametrize("name", PRESETS)
def test_each_call_gives_a_new_configuration_with_overrides(name: str) -> None:
    first, second = preset(name), preset(name, tau=0.25, num_hidden_layers=3)
    assert first is not preset(name)
    assert (second.tau, second.num_hidden_layers) == (0.25, 3)
    changed = {field for field, value in second.to_dict().items() if value != first.to_dict()[field]}
    assert changed == {"tau", "num_hidden_layers"}


def test_vanilla_gives_the_twin_of_any_preset() -> None:
    assert preset("moepp-1b-16+4", vanilla=True).to_dict() == preset("moe-1b-16").to_dict()
    assert preset("debug", vanilla=True).moe.layout() == ExpertLayout(4, 0, 0, 0)


def test_there_is_a_preset_for_every_model_of_table_2_and_one_to_try_things() -> None:
    assert set(PRESETS) == {*PAPER, "debug"}


@pytest.mark.parametrize("wrong", ["moepp-0.6b-8", "moepp-7b", "moe-2b-23"])
def test_unknown_preset_names_the_nearest(wrong: str) -> None:
    near = {"moepp-0.6b-8": "moepp-0.6b-8+4", "moepp-7b": "moepp-7b-16+4", "moe-2b-23": "moe-2b-32"}[wrong]
    with pytest.raises(ConfigError) as error:
        preset(wrong)
    assert str(error.value) == f"model.preset={wrong!r} does not exist; did you mean {near!r}?"


def test_a_name_like_no_other_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"^model\.preset='xyz' does not exist; choose one of debug, moe-0\.6b-8, "):
        preset("xyz")
