"""One training step of a tiny model over real processes, and what it holds and sends; forked by the tests beside it."""

import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from moepp.bench.work import exact_share_routing
from moepp.layers import Routing
from moepp.model import MoEPPConfig, MoEPPForCausalLM
from moepp.plan import Batch, Sizes
from moepp.train.distributed import build_model, local
from moepp.train.initialise import initialise
from moepp.train.layout import Layout


def size(tensor: Tensor) -> int:
    """Bytes of this process's part."""
    return local(tensor).numel() * tensor.element_size()


class Wire:
    """Counts the bytes that collectives receive from other processes."""

    KINDS = types.MappingProxyType(
        {
            "all_gather_single": "gather",
            "all_gather_into_tensor": "gather",  # what older versions of FSDP call
            "reduce_scatter_single": "reduce",
            "reduce_scatter_tensor": "reduce",
            "all_reduce": "reduce",
            "all_to_all_single": "exchange",
        }
    )

    def __init__(self) -> None:
        self.bytes: dict[str, float] = defaultdict(float)
        self._patches = [
            mock.patch.object(dist, name, self._counting(name)) for name in self.KINDS if hasattr(dist, name)
        ]

    def __enter__(self) -> "Wire":
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()

    def _counting(self, name: str) -> Callable[..., Any]:
        real = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            group = kwargs["group"]
            others = 1 - 1 / group.size()
            largest = max(size(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            if name == "all_reduce":
                others *= 2  # a reduction and a gathering
            elif name == "all_to_all_single":
                result, _, *splits = args
                own = splits[0][dist.get_rank(group)] if splits else 0
                largest, others = (len(result) - own) * size(result[:1]), bool(splits)  # not the counts of the rows
            self.bytes[self.KINDS[name]] += others * largest
            return real(*args, **kwargs)

        return call


def train_once(config: MoEPPConfig, batch: Batch, sizes: Sizes) -> dict[str, float]:
    """A step, at a routing in which every expert has tau's share exactly."""
    rank = dist.get_rank()
    model = build_model(config, Layout(sizes.replicate, sizes.fsdp, sizes.ep, rank), device="cpu")
    initialise(model, seed=0)
    model.train()
    if batch.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters())
    accumulated = 0
    prescribed = exact_share_routing(config.moe, batch.tokens, seed=rank)

    def prescribe(routing: Routing) -> Routing:
        weight = routing.probs.gather(-1, prescribed.expert)
        return routing._replace(expert=prescribed.expert, weight=weight, kept=prescribed.kept)

    with Wire() as wire:
        for left in reversed(range(batch.micro_batches // sizes.gpus)):
            _synchronise(model, left == 0, sizes)
            ids = torch.randint(3, config.vocab_size, (batch.sequences, batch.sequence_length))
            with torch.autocast("cpu", torch.bfloat16, enabled=batch.bf16):
                loss = model(input_ids=ids, labels=ids, use_cache=False, routing_edit=prescribe).loss
            loss.backward()
            if left:
                accumulated = _whole_gradients(model)
    optimizer.step()
    states = [state for each in optimizer.state.values() for state in each.values()]
    return {
        "weights": sum(size(p) for p in model.parameters()),
        "gradients": sum(size(p.grad) for p in model.parameters() if p.grad is not None),
        "optimizer": sum(map(size, states)),
        "accumulated": accumulated,
        **wire.bytes,
    }


def _synchronise(model: MoEPPForCausalLM, now: bool, sizes: Sizes) -> None:
    """What transformers' Trainer says to FSDP before each micro-batch."""
    if sizes.gpus > 1:
        model.set_requires_gradient_sync(True)
        if not now and sizes.replicate > 1:
            model.set_requires_all_reduce(False)
        elif not now:
            model.set_requires_gradient_sync(False)


def _whole_gradients(model: MoEPPForCausalLM) -> int:
    """Bytes of the gradients that FSDP has not reduced yet."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    groups = {module._get_fsdp_state()._fsdp_param_group for module in sharded}  # norm and head share one
    grads = [parameter.unsharded_param.grad for group in groups if group for parameter in group.fsdp_params]
    return sum(size(grad) for grad in grads if grad is not None)


def train_at(cases: list[tuple[MoEPPConfig, Batch, Sizes]]) -> list[dict[str, float]]:
    """Several in one job."""
    return [train_once(*case) for case in cases]
