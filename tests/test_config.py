"""The configuration: what it refuses and with which words, and the order of experts."""

import dataclasses

import pytest

from moepp.config import EXPERT_TYPES, ExpertLayout, MoEConfig, suggested_constant_experts
from moepp.errors import ConfigError, MoEPPError, nearest

PAPER = MoEConfig(hidden_size=768, intermediate_size=2048, num_ffn_experts=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[
            ({name: value}, rf"^moe\.{name}={value!r} must be an integer >= 1$")
            for name in ("hidden_size", "intermediate_size", "num_ffn_experts", "top_k")
            for value in (0, -1, 2.0, True, "8")
        ],
        *[
            ({f"num_{kind}_experts": value}, rf"^moe\.num_{kind}_experts={value!r} must be an integer >= 0$")
            for kind in ("constant", "copy", "zero", "shared")
            for value in (-1, 1.0, False)
        ],
        ({"top_k": 13}, r"^moe\.top_k=13 exceeds the 12 experts of this layer; lower top_k or add experts$"),
        *[({"tau": value}, r"^moe\.tau=\S+ must be a number > 0; the paper uses 0\.1 to 1\.0$") for value in (0, -0.5)],
        ({"tau": float("nan")}, r"^moe\.tau=nan must be a number > 0"),
        ({"tau": "0.75"}, r"^moe\.tau='0\.75' must be a number > 0"),
        *[
            ({name: value}, rf"^moe\.{name}=\S+ must be a number > 0, or None to switch it off$")
            for name in ("capacity_factor", "eval_capacity_factor", "logits_std")
            for value in (0.0, -1, float("inf"), True)
        ],
        ({"drop_policy": "random"}, r"^moe\.drop_policy='random' must be one of probability, position$"),
        ({"gate": "mlp"}, r"^moe\.gate='mlp' must be one of linear, tanh_mlp$"),
        (
            {"combine": "softmax"},
            r"^moe\.combine='softmax' must be one of probabilities, renormalize, renormalize_nonzero, softmax_topk$",
        ),
        ({"gating_residual": 1}, r"^moe\.gating_residual=1 must be true or false$"),
        ({"input_scale": float("inf")}, r"^moe\.input_scale=inf must be a finite number$"),
        ({"input_scale": "2"}, r"^moe\.input_scale='2' must be a finite number$"),
        *[
            ({name: value}, rf"^moe\.{name}=\S+ must be a number >= 0$")
            for name in ("constant_init_std", "residual_init_std")
            for value in (-0.1, float("nan"), None)
        ],
    ],
)
def test_refuses_a_value_that_cannot_work(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PAPER, **changes)


def test_refuses_a_standard_deviation_over_one_expert() -> None:
    alone = dataclasses.replace(PAPER.vanilla(), num_ffn_experts=1, top_k=1)
    message = (
        r"^moe\.logits_std=1\.0 needs at least 2 experts to take a standard deviation over; "
        r"set it to None or add experts$"
    )
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(alone, logits_std=1.0)


@pytest.mark.parametrize("changes", [{"tau": 1}, {"capacity_factor": None}, {"num_zero_experts": 0}, {"top_k": 12}])
def test_accepts_the_edges(changes: dict) -> None:
    dataclasses.replace(PAPER, **changes)


def test_config_error_is_a_user_error_and_a_value_error() -> None:
    assert issubclass(ConfigError, MoEPPError)
    assert issubclass(ConfigError, ValueError)


def test_defaults_are_the_papers() -> None:
    assert (PAPER.top_k, PAPER.tau, PAPER.capacity_factor) == (2, 0.75, 1.1)
    assert (PAPER.num_constant_experts, PAPER.num_copy_experts, PAPER.num_zero_experts) == (2, 1, 1)
    assert PAPER.gating_residual
    assert PAPER.combine == "probabilities"


def test_sizes_have_no_default_and_fields_have_names() -> None:
    with pytest.raises(TypeError, match="num_ffn_experts"):
        MoEConfig(hidden_size=8, intermediate_size=8)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="positional"):
        MoEConfig(8, 8, 8)  # pyright: ignore[reportCallIssue]


def test_config_and_layout_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.tau = 0.5  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.layout().ffn = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert hash(PAPER) == hash(dataclasses.replace(PAPER))


def test_layout_orders_ffn_constant_copy_zero() -> None:
    layout = PAPER.layout()
    assert EXPERT_TYPES == ("ffn", "constant", "copy", "zero")
    assert [layout.type_of(e) for e in range(12)] == ["ffn"] * 8 + ["constant"] * 2 + ["copy", "zero"]
    assert [layout.indices(kind) for kind in EXPERT_TYPES] == [range(8), range(8, 10), range(10, 11), range(11, 12)]
    assert (layout.num_experts, layout.num_zero_computation) == (12, 4)
    assert [layout.count(kind) for kind in EXPERT_TYPES] == [8, 2, 1, 1]


@pytest.mark.parametrize("expert", [-1, 12])
def test_layout_has_no_type_outside_its_experts(expert: int) -> None:
    with pytest.raises(IndexError, match=f"expert {expert} of 12"):
        PAPER.layout().type_of(expert)


def test_absent_types_have_empty_ranges() -> None:
    layout = ExpertLayout(ffn=3, constant=0, copy=2, zero=0)
    assert [list(layout.indices(kind)) for kind in EXPERT_TYPES] == [[0, 1, 2], [], [3, 4], []]


def test_vanilla_is_the_same_ffn_experts_and_nothing_else() -> None:
    vanilla = PAPER.vanilla()
    assert vanilla.layout() == ExpertLayout(ffn=8, constant=0, copy=0, zero=0)
    assert not vanilla.gating_residual
    kept = {"hidden_size", "intermediate_size", "num_ffn_experts", "top_k", "tau", "capacity_factor", "combine"}
    assert all(getattr(vanilla, name) == getattr(PAPER, name) for name in kept)
    assert vanilla.vanilla() == vanilla


def test_shared_experts_are_outside_the_layout_and_stay_in_the_vanilla_twin() -> None:
    shared = dataclasses.replace(PAPER, num_shared_experts=2)
    assert shared.layout() == PAPER.layout()
    assert shared.ffn_share() == PAPER.ffn_share()
    assert shared.vanilla() == dataclasses.replace(PAPER.vanilla(), num_shared_experts=2)


@pytest.mark.parametrize(("tau", "share"), [(0.1, 1 / 6), (0.25, 1 / 3), (0.5, 0.5), (0.75, 0.6), (1.0, 2 / 3)])
def test_ffn_share_is_table_1(tau: float, share: float) -> None:
    """Its inverse is the bound on the speed-up: 500, 200, 100, 66.7 and 50 % gain for (8+4) experts."""
    assert dataclasses.replace(PAPER, tau=tau).ffn_share() == pytest.approx(share)
    assert PAPER.vanilla().ffn_share() == 1.0


def test_nearest_names_the_closest_or_lists_what_exists() -> None:
    assert nearest("gruoped", ["reference", "grouped"]) == "did you mean 'grouped'?"
    assert nearest("xyz", ["b", "a"]) == "choose one of a, b"


@pytest.mark.parametrize(("ffn", "expected"), [(8, 1), (16, 2), (32, 6), (4, 1), (64, 14)])
def test_suggested_constant_experts_is_eq_10(ffn: int, expected: int) -> None:
    assert suggested_constant_experts(ffn) == expected


def test_suggested_constant_experts_leaves_room_for_the_other_types() -> None:
    assert suggested_constant_experts(32, num_zero_experts=2, num_copy_experts=3) == 3
