"""Random weights that do not depend on how a model is spread over processes.

Each module's parameters are drawn in full on the CPU, from a generator seeded by the run's seed and the module's name;
a process that holds a shard of them keeps that shard and drops the rest. So no process ever holds more than one module
whole, and the gathered weights are the same, bit for bit, on any number of processes. A plain ``normal_`` on shards
would give every process the same numbers.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..layers import FFNExperts, Router, ZeroComputationExperts
from ..model import MoEPPForCausalLM
from .distributed import local_shard

_DRAWN_WHOLE = (Router, FFNExperts, ZeroComputationExperts)  # they draw for their parts, too


@torch.no_grad()
def initialise(model: MoEPPForCausalLM, seed: int) -> None:
    """Draws the weights of a model whose parameters, sharded or not, have memory and no values yet."""
    drawn: set[int] = set()
    for name, parts in _modules(model):
        places = [(part, key) for part in parts for key, p in part._parameters.items() if p is not None]
        held = [part._parameters[key] for part, key in places]
        if held and all(id(p) in drawn for p in held):
            continue  # tied to what was drawn already
        drawn |= {id(p) for p in held}
        for (part, key), p in zip(places, held, strict=True):
            assert p is not None
            part._parameters[key] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="cpu"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(seed, name))
            model._init_weights(parts[0])
        for (part, key), p in zip(places, held, strict=True):
            full, part._parameters[key] = part._parameters[key], p
            assert p is not None
            assert full is not None
            _fill(p, full)


def _modules(model: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """What is drawn together: a module with its parts where it draws for them, else by itself."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module not in inside:
            parts = [*module.modules()] if isinstance(module, _DRAWN_WHOLE) else [module]
            inside |= set(parts)
            yield name, parts


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8])


def _fill(parameter: Tensor, full: Tensor) -> None:
    local, shard = local_shard(parameter, full)
    local.copy_(shard)
