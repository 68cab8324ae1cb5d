"""``moepp plan --dry-run``: the model as the first of many processes would have it, built on one machine.

The process group is PyTorch's fake one, whose collectives do nothing, and the parameters are on the meta device,
without memory; everything else, from the device mesh to FSDP's shards, is what a training run builds.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.distributed as dist
from rich import box
from rich.table import Table
from torch import nn
from torch.distributed.tensor import DTensor

from ..errors import MoEPPError
from ..format import binary, large
from ..model import MoEPPConfig
from ..plan import Plan, first_shard
from ..train.distributed import build_model
from ..train.layout import Layout


def dry_run_table(config: MoEPPConfig, shapes: Mapping[str, tuple[int, ...]], plan: Plan) -> Table:
    """Rank 0's shards, parameters of the same name and shape in different layers being one row.

    Raises:
        MoEPPError: a shape, or the sum, is not what the plan says.
    """
    sizes = plan.sizes
    layout = Layout(replicate_size=sizes.replicate, fsdp_size=sizes.fsdp, ep_size=sizes.ep, rank=0)
    rows: dict[tuple[str, ...], tuple[int, int]] = {}
    with fake_processes(sizes.gpus):
        model = build_model(config, layout, device="meta")
        for name, parameter in model.named_parameters():
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            expected = shapes.get(name), first_shard(name, shapes[name], sizes) if name in shapes else None
            found = tuple(parameter.shape), tuple(local.shape)
            if found != expected:
                raise MoEPPError(
                    f"dry run: {name} is {found[0]}, and {found[1]} on rank 0, where the plan says {expected[0]} and "
                    f"{expected[1]}; its figures for these sizes are not to be trusted"
                )
            key = _pattern(name), _shape(found[0]), _shape(found[1]), _placement(parameter)
            count, size = rows.get(key, (0, 0))
            rows[key] = count + 1, size + local.numel() * local.element_size()
    total = sum(size for _, size in rows.values())
    if total != plan.memory.weights:
        raise MoEPPError(f"dry run: rank 0 holds {total} bytes of weights, where the plan says {plan.memory.weights}")
    return _table(rows, total, plan)


@contextmanager
def fake_processes(world_size: int) -> Iterator[None]:
    """Makes this process rank 0 of so many that don't exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _table(rows: Mapping[tuple[str, ...], tuple[int, int]], total: int, plan: Plan) -> Table:
    sizes = plan.sizes
    whole = large(sum(math.prod(map(int, key[1].split(" × "))) * count for key, (count, _) in rows.items()))
    table = Table(
        title=f"What rank 0 of {sizes.gpus} holds of {whole} parameters: "
        f"fsdp_size={sizes.fsdp} ep_size={sizes.ep} replicate_size={sizes.replicate}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption="every shape is the plan's; gradients are as large as the weights, AdamW's moments twice as large",
        caption_justify="left",
    )
    table.add_column("parameter", overflow="fold")
    for column in ("times", "whole", "on rank 0", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("sharded over", no_wrap=True)
    for (name, shape, local, placement), (count, size) in rows.items():
        table.add_row(name, str(count), shape, local, binary(size), placement)
    table.add_section()
    table.add_row("all weights", "", "", "", binary(total), "as planned")
    return table


def _pattern(name: str) -> str:
    """The same for a parameter of every layer."""
    return re.sub(r"^model\.(layers\.\d+\.)?|\.weight$", "", name)


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _placement(parameter: nn.Parameter) -> str:
    if not isinstance(parameter, DTensor):
        return "nothing"
    mesh, names = parameter.device_mesh, parameter.device_mesh.mesh_dim_names or ()
    cut = [
        f"{name} {mesh.size(index)}"
        for index, (name, placement) in enumerate(zip(names, parameter.placements, strict=True))
        if not placement.is_replicate()
    ]
    return ", ".join(cut)
