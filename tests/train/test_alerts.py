"""Routing alerts from crafted counts: what is said, where, and how often."""

import re
from typing import Any

import pytest
import torch

from moepp import MoEConfig, Routing, RoutingStats
from moepp.train.alerts import RoutingAlerts

from .tiny import Runner, at_step

# tau's balance gives the four FFN experts 0.75 · 4 / (0.75 · 4 + 4) = 43 % of the choices.
CONFIG = MoEConfig(hidden_size=8, intermediate_size=8, num_ffn_experts=4)


def stats(ffn: list[int], other: int = 100, kept: float = 1.0) -> RoutingStats:
    """Choices of the four FFN experts and of each other expert, and the share of them that capacity kept."""
    assigned = torch.tensor([*ffn, *[other] * 4])
    return RoutingStats(
        tokens=assigned.sum() // 2, assigned=assigned, kept=(assigned * kept).long(), prob_sum=assigned / 2
    )


GOOD = stats([75, 75, 75, 75])
ONE_CONSTANT = torch.tensor([75, 75, 75, 75, 0, 200, 100, 100])
CASES = {
    "share": (
        stats([200, 200, 200, 200]),
        r"^layer 1: 67% of the choices are FFN experts, tau=0\.75 aims at 43%; "
        r"raise router_aux_loss_coef or train longer$",
    ),
    "dead": (
        stats([100, 100, 100, 0]),
        r"^layer 1: ffn experts \[3\] are dead \(under 1% of the load that tau implies\); raise router_aux_loss_coef$",
    ),
    "dead constant": (
        GOOD._replace(assigned=ONE_CONSTANT, kept=ONE_CONSTANT),
        r"^layer 1: constant experts \[4\] are dead \(under 1% of the load that tau implies\); raise router_aux",
    ),
    "collapsed": (
        stats([290, 4, 3, 3]),
        r"^layer 1: collapsed: the busiest FFN expert takes 97% of the FFN choices; "
        r"raise router_aux_loss_coef or lower the learning rate$",
    ),
    "dropping": (
        stats([76, 76, 76, 76], kept=0.5),
        r"^layer 1: capacity drops 50% of the assignments; raise capacity_factor \(1\.1\) or set it to null$",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_alert_names_its_step_layer_and_remedy(case: str, caplog: pytest.LogCaptureFixture) -> None:
    bad, message = CASES[case]
    (alert,) = RoutingAlerts(CONFIG).check(7, [GOOD, bad])
    assert re.search(message, alert)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("moepp.train", "WARNING")
    assert record.getMessage() == f"step 7, {alert}"


@pytest.mark.parametrize("case", CASES)
def test_an_alert_is_given_once_until_it_has_cleared(case: str) -> None:
    bad, _ = CASES[case]
    alerts = RoutingAlerts(CONFIG)
    new = [len(alerts.check(step, [layer])) for step, layer in enumerate([bad, bad, GOOD, bad, bad])]
    assert new == [1, 0, 0, 1, 0]


def test_each_layer_has_its_own_alerts() -> None:
    alerts = RoutingAlerts(CONFIG)
    bad, _ = CASES["collapsed"]
    assert [alert[:7] for alert in alerts.check(1, [bad, GOOD])] == ["layer 0"]
    assert [alert[:7] for alert in alerts.check(2, [bad, bad])] == ["layer 1"]


def test_a_layer_can_have_several_alerts_at_once() -> None:
    texts = RoutingAlerts(CONFIG).check(1, [stats([800, 1, 1, 1], kept=0.5)])
    assert [text.split()[2] for text in texts] == ["67%", "collapsed:", "capacity"]


def test_good_routing_gives_none(caplog: pytest.LogCaptureFixture) -> None:
    assert RoutingAlerts(CONFIG).check(1, [GOOD, GOOD]) == []
    assert not caplog.records


def test_a_vanilla_layer_is_on_its_target_with_ffn_experts_alone() -> None:
    even = stats([75, 75, 75, 75])._replace(**{n: getattr(GOOD, n)[:4] for n in ("assigned", "kept", "prob_sum")})
    assert RoutingAlerts(CONFIG.vanilla()).check(1, [even]) == []


def test_a_layer_without_any_ffn_choice_is_off_its_share_and_nothing_else() -> None:
    (alert,) = RoutingAlerts(CONFIG).check(1, [stats([0, 0, 0, 0])])
    assert alert.startswith("layer 0: 0% of the choices are FFN experts")


def test_after_its_warm_up_a_run_raises_alerts_about_its_own_routing(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    def collapse(seen: dict[str, Any]) -> None:
        """Layer 1 sends every token to FFN expert 2."""
        router = seen["model"].model.layers[1].mlp.router

        def forward(module: object, args: tuple, routing: Routing) -> Routing:
            return routing._replace(expert=torch.full_like(routing.expert, 2))

        router.register_forward_hook(forward)

    with at_step(None, collapse, "on_train_begin"):  # its warm-up are steps 1 to 4
        runner.train("collapsed", "training.max_steps=6", "model.capacity_factor=null")
    assert min(record.getMessage() for record in caplog.records if record.name == "moepp.train") >= "step 5"
    said = [record.getMessage() for record in caplog.records if "layer 1: collapsed" in record.getMessage()]
    assert said == [
        "step 5, layer 1: collapsed: the busiest FFN expert takes 100% of the FFN choices; "
        "raise router_aux_loss_coef or lower the learning rate"
    ]
