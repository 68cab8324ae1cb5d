"""Other people's FFN experts, on the very tensors that ours run on.

T tokens, D hidden, F intermediate, N FFN experts, K top-k.

A peer that cannot run says why. Peers are given FFN ids only, except where they know experts that compute nothing.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MoEConfig

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (T, D), expert (T, K), weight (T, K)) -> (T, D)."""


@dataclass(frozen=True)
class Setting:
    """What a peer is asked to run."""

    config: MoEConfig
    gate_up: nn.Parameter
    down: nn.Parameter
    tokens: int
    backward: bool

    @property
    def device(self) -> torch.device:
        return self.gate_up.device


@dataclass(frozen=True)
class Peer:
    """One other implementation."""

    variant: str
    """As rows name it."""
    build: Callable[[Setting], Experts]
    why_not: Callable[[Setting], str | None]
    identities: bool = False
    """Whether it knows experts that compute nothing, ids from N on, as identities."""


def _mixtral(implementation: str) -> Callable[[Setting], Experts]:
    def build(setting: Setting) -> Experts:
        from transformers.models.mixtral.configuration_mixtral import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        config = MixtralConfig(
            hidden_size=setting.config.hidden_size,
            intermediate_size=setting.config.intermediate_size,
            num_local_experts=setting.config.num_ffn_experts,
            num_experts_per_tok=setting.config.top_k,
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            experts = MixtralExperts(config)
        return _with_weights(experts, setting)

    return build


def _longcat(setting: Setting) -> Experts:
    from transformers.models.longcat_flash.configuration_longcat_flash import LongcatFlashConfig
    from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts

    config = LongcatFlashConfig(
        hidden_size=setting.config.hidden_size,
        expert_ffn_hidden_size=setting.config.intermediate_size,
        n_routed_experts=setting.config.num_ffn_experts,
        zero_expert_num=setting.config.layout().num_zero_computation,
        moe_topk=setting.config.top_k,
    )
    with torch.device("meta"):
        experts = LongcatFlashExperts(config)
    return _with_weights(experts, setting)


def _scattermoe(setting: Setting) -> Experts:
    from scattermoe import flatten_sort_count, parallel_linear  # pyright: ignore[reportMissingImports]

    def run(x: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
        routed = flatten_sort_count(expert, num_experts=setting.config.num_ffn_experts)
        hidden = parallel_linear(x, setting.gate_up.transpose(1, 2), expert.shape[1], *routed, grouped_out=True)
        gate, up = hidden.chunk(2, dim=-1)
        down = setting.down.transpose(1, 2)
        return parallel_linear(F.silu(gate) * up, down, 1, *routed, gates=weight.to(x.dtype), grouped_in=True)

    return run


def _with_weights(experts: nn.Module, setting: Setting) -> Experts:
    experts.gate_up_proj, experts.down_proj = setting.gate_up, setting.down
    return experts


def _always(_: Setting) -> None:
    return None


def _needs_memory(setting: Setting) -> str | None:
    """batched_mm copies the weights of every (token, expert) pair."""
    pairs = setting.tokens * setting.config.top_k
    needed = 3 * setting.config.hidden_size * setting.config.intermediate_size * pairs * setting.down.element_size()
    needed *= 2 if setting.backward else 1
    free = _free_memory(setting.device)
    if needed > free / 3:
        return f"would copy {needed / 2**30:,.0f} GiB of weights, with {free / 2**30:,.0f} GiB free"
    return None


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _needs_gpu(package: str) -> Callable[[Setting], str | None]:
    def why_not(setting: Setting) -> str | None:
        if setting.device.type != "cuda":
            return "runs on a CUDA GPU only"
        return None if importlib.util.find_spec(package) else f"the package {package} is not installed"

    return why_not


def _no_adapter(package: str, reason: str) -> Callable[[Setting], str | None]:
    missing = _needs_gpu(package)
    return lambda setting: missing(setting) or reason


def _unbuilt(_: Setting) -> Experts:
    raise AssertionError("a peer without an adapter is never built")


PEERS = {
    "eager": Peer("transformers:eager", _mixtral("eager"), _always),
    "grouped_mm": Peer("transformers:grouped_mm", _mixtral("grouped_mm"), _always),
    "batched_mm": Peer("transformers:batched_mm", _mixtral("batched_mm"), _needs_memory),
    "longcat_flash": Peer("transformers:longcat_flash", _longcat, _always, identities=True),
    # transformers' own adapter, which fetches the kernel through the package `kernels`.
    "sonicmoe": Peer("transformers:sonicmoe", _mixtral("sonicmoe"), _needs_gpu("kernels")),
    "scattermoe": Peer("scattermoe", _scattermoe, _needs_gpu("scattermoe")),
    "megablocks": Peer(
        "megablocks", _unbuilt, _no_adapter("megablocks", "nobody has written its adapter and tried it on a GPU")
    ),
}
