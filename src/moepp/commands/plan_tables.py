"""The tables of ``moepp plan``: one layout in detail, and all of them."""

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from ..format import binary, duration, large, long_duration
from ..model import MoEPPConfig
from ..plan import EXACT, USABLE, Batch, Cluster, Flow, Plan, Sizes, exchange

_EXACT, _MODEL = "[green]exact[/]", "[yellow]model[/]"


def detail_table(config: MoEPPConfig, batch: Batch, cluster: Cluster, plan: Plan, steps: int) -> Table:
    """Memory, traffic and time of one layout."""
    sizes, moved = plan.sizes, plan.traffic
    table = Table(
        caption="exact: counted, as FSDP2 and the exchange do it. model: an estimate, see docs/planning.md",
        caption_justify="left",
        show_header=False,
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for field, label, how in _memory_rows(plan, batch):
        mark = _EXACT if field in EXACT else _MODEL
        table.add_row(label, _amount(getattr(plan.memory, field)), mark, how)
    usable = f"{binary(USABLE * cluster.gpu_memory)} of {binary(cluster.gpu_memory)} may be used"
    verdict = "[green]fits[/]" if plan.fits else "[red]too much[/]"
    table.add_row("memory of one GPU", binary(plan.memory.total), verdict, usable, end_section=True)

    layer = exchange(config, batch, sizes)
    away = f"{large(round(layer.away))} rows a layer and micro-batch, at tau's loads"
    rows = away if sizes.ep > 1 else "only with expert parallelism"
    table.add_row("gathered weights", _amount(moved.gather.total), _EXACT, _links(moved.gather))
    table.add_row("reduced gradients", _amount(moved.reduce.total), _EXACT, _links(moved.reduce))
    table.add_row("exchanged rows", _amount(moved.exchange.total), _EXACT, rows, end_section=True)

    tokens = batch.tokens * batch.micro_batches
    work = f"{plan.flops:.3g} FLOPs at {cluster.utilisation:.0%} of {cluster.peak:.3g} a second"
    table.add_row("computing", duration(plan.computing), _MODEL, work)
    table.add_row("weights and gradients", _time(plan.gathering), _MODEL, "while computing, hidden where shorter")
    table.add_row("exchanging", _time(plan.exchanging), _MODEL, "between computing: adds to it")
    rate = f"{large(tokens / plan.step)} tokens a second"
    table.add_row("one step", duration(plan.step), _MODEL, f"{large(tokens)} tokens; {rate}")
    table.add_row("the run", long_duration(steps * plan.step), _MODEL, f"{steps} steps, {large(steps * tokens)} tokens")
    return table


def sizes_table(plans: Sequence[Plan], chosen: Sizes, batch: Batch, steps: int) -> Table:
    """All layouts, the best first."""
    table = Table(
        title="All sizes; those that fit first, the fastest first",
        title_justify="left",
        caption="› the sizes above, × too much memory; in node, between: bytes that a GPU receives in a step",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True, min_width=1)
    for column in ("fsdp", "ep", "replicate", "memory", "in node", "between", "step", "tokens/s", "the run"):
        table.add_column(column, justify="right", no_wrap=True)
    tokens = batch.tokens * batch.micro_batches
    for plan in plans:
        sizes, moved = plan.sizes, plan.traffic
        total = moved.gather + moved.reduce + moved.exchange
        table.add_row(
            ("›" if sizes == chosen else " ") + (" " if plan.fits else "×"),
            *(str(sizes.fsdp), str(sizes.ep), str(sizes.replicate)),
            *(binary(plan.memory.total), _amount(total.inside), _amount(total.outside)),
            *(duration(plan.step), large(tokens / plan.step), long_duration(steps * plan.step)),
            style="bold" if sizes == chosen else "" if plan.fits else "dim",
        )
    return table


def heading(name: str, shapes: Mapping[str, tuple[int, ...]], batch: Batch, cluster: Cluster, sizes: Sizes) -> str:
    """What the tables are about."""
    parameters = large(sum(map(math.prod, shapes.values())))
    each = batch.micro_batches // sizes.gpus
    nodes = math.ceil(sizes.gpus / cluster.gpus_per_node)
    return (
        f"{name}: {parameters} parameters on {_count(sizes.gpus, 'GPU')} in {_count(nodes, 'node')}\n"
        f"fsdp_size={sizes.fsdp} ep_size={sizes.ep} replicate_size={sizes.replicate}, "
        f"{_count(each, 'micro-batch', 'es')} of {batch.sequences} × {batch.sequence_length} tokens a GPU and step"
    )


def _memory_rows(plan: Plan, batch: Batch) -> list[tuple[str, str, str]]:
    sizes = plan.sizes
    cut = f"1/{sizes.fsdp} of every parameter, rounded up" if sizes.fsdp > 1 else "all parameters"
    whole = "held until a step's last micro-batch" if plan.memory.accumulated else "none wait for other micro-batches"
    kept = "layers' inputs, and one layer run again" if batch.checkpointing else "all that layers keep"
    return [
        ("weights", "weights", f"float32, {cut}"),
        ("gradients", "gradients", "float32"),
        ("optimizer", "optimizer", "AdamW: two moments, float32"),
        ("accumulated", "whole gradients", whole),
        ("gathered", "gathered layers", "two layers, one's gradients, buffers"),
        ("activations", "activations", kept),
        ("logits", "logits", "the loss beyond a layer, float32"),
        ("exchange", "exchange", "rows to and from FFN experts"),
    ]


def _links(flow: Flow) -> str:
    if not flow.total:
        return "none"
    return f"{_amount(flow.inside)} in the node, {_amount(flow.outside)} from other nodes"


def _amount(number: float) -> str:
    return binary(number) if number else "–"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds else "–"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{plural if number != 1 else ''}"
