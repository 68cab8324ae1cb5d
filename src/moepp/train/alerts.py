"""Warnings about routing that is going wrong, each with its layer and a remedy."""

import logging
import math
from collections.abc import Iterator

from ..config import EXPERT_TYPES, ExpertType, MoEConfig
from ..layers import RoutingStats

logger = logging.getLogger("moepp.train")

SHARE_OFF = 0.15  # absolute distance of a layer's FFN share from the one that tau implies
DEAD = 0.01  # an expert's load over what tau's balance gives it
DROPPING = 0.25  # share of a layer's assignments
COLLAPSED = 0.5  # entropy of the FFN experts' load over that of an even load


class RoutingAlerts:
    """Logs each alert once, and again only after it had cleared."""

    def __init__(self, config: MoEConfig) -> None:
        self.config = config
        self._standing: set[tuple[str, int]] = set()

    def check(self, step: int, stats: list[RoutingStats]) -> list[str]:
        """Looks at one window's statistics, one per layer; returns the alerts that are new."""
        found = {(kind, index): text for index, layer in enumerate(stats) for kind, text in _alerts(layer, self.config)}
        new = [f"layer {key[1]}: {text}" for key, text in found.items() if key not in self._standing]
        self._standing = set(found)
        for alert in new:
            logger.warning("step %d, %s", step, alert)
        return new


def _alerts(stats: RoutingStats, config: MoEConfig) -> Iterator[tuple[str, str]]:
    layout = config.layout()
    share, target = stats.shares(layout)["ffn"], config.ffn_share()
    if abs(share - target) > SHARE_OFF:
        yield (
            "share",
            f"{share:.0%} of the choices are FFN experts, tau={config.tau:g} aims at {target:.0%}; "
            "raise router_aux_loss_coef or train longer",
        )
    load = stats.assigned[: layout.ffn].double()
    said = not load.sum()  # no FFN choice at all, or one expert with all of them: more alerts would say it again
    if layout.ffn > 1 and float(load.sum()) > 0:
        spread = load / load.sum()
        entropy = float(-(spread * spread.clamp_min(1e-30).log()).sum()) / math.log(layout.ffn)
        if entropy < COLLAPSED:
            said = True
            yield (
                "collapsed",
                f"collapsed: the busiest FFN expert takes {float(spread.max()):.0%} of the FFN choices; "
                "raise router_aux_loss_coef or lower the learning rate",
            )
    for kind in EXPERT_TYPES:
        dead = _dead(stats, config, kind)
        if dead and not (kind == "ffn" and said):
            yield (
                f"dead {kind}",
                f"{kind} experts {dead} are dead (under {DEAD:.0%} of the load that tau implies); "
                "raise router_aux_loss_coef",
            )
    total = float(stats.assigned.sum())
    lost = total - float(stats.kept.sum())
    if total and lost / total > DROPPING:
        yield (
            "dropping",
            f"capacity drops {lost / total:.0%} of the assignments; raise capacity_factor "
            f"({config.capacity_factor:g}) or set it to null"
            if config.capacity_factor
            else f"{lost / total:.0%} of the assignments are lost though there is no capacity",
        )


def _dead(stats: RoutingStats, config: MoEConfig, kind: ExpertType) -> list[int]:
    """The ids of a type's experts that hardly anybody chooses."""
    layout = config.layout()
    balance = config.tau * layout.ffn + layout.num_zero_computation
    expected = float(stats.assigned.sum()) * (config.tau if kind == "ffn" else 1.0) / balance
    return [index for index in layout.indices(kind) if float(stats.assigned[index]) < DEAD * expected]
