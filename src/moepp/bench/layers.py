"""The benchmarks of one layer: ``experts``, ``layer``, ``decode`` and ``train``.

T tokens, D hidden, F intermediate, N FFN experts, K top-k.

``moepp:B`` is MoE++ and ``vanilla:B`` its twin on backend B. In ``experts`` they get their routing; in the others the
whole layer runs, router included, and where the routing is synthetic it replaces the router's choice after the router
has made it. A peer is FFN experts with the vanilla routing given, which is what ``vanilla:B`` is in ``experts``; in
``decode`` and ``train`` it is compared with ``ffn:B``, our FFN experts given the same. ``limit:onednn``, in ``experts``
on a CPU, is what oneDNN's products take without the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops import DenseTerm, Packed, expert_ffn, pack_weights, packed_weights
from ..ops.quantized import SCHEMES, bytes_per_weight
from .measure import QUANTIZED_TOLERANCE, Case, Group, Run, Variant
from .peers import PEERS, Experts, Setting
from .rows import Pass, Row
from .work import LayerWork, on_backend

Works = Mapping[float | None, Sequence[LayerWork]]
"""By tau; None is the vanilla twin's."""
PASSES: dict[str, Pass] = {
    "experts": "forward",
    "layer": "forward",
    "decode": "decode",
    "train": "forward+backward",
}


def layer_group(case: Case, works: Works, backends: Sequence[str], peers: Sequence[str]) -> Group:
    """The variants of one of :data:`PASSES`' benchmarks."""
    variants, truths = [], {}
    absent: list[Row] = []
    shared = any(item.layer.config.num_shared_experts for work in works.values() for item in work)
    if shared and case.benchmark != "layer":
        reason = "it runs routed experts alone, and these layers have shared ones"
        absent = [case.row(PEERS[peer].variant, PASSES[case.benchmark], reason=reason) for peer in peers]
        peers = ()
    for tau, work in works.items():
        name = "vanilla" if tau is None else f"tau {tau:g}"
        truths[name] = _layers(case, work, "reference")
        variants += [_ours(case, works, tau, backend, name, backends, peers) for backend in backends]
    if case.benchmark == "experts" and case.device == "cpu" and "auto" in backends:
        limit, truths["limit"] = _limit(case, works[None])
        variants.append(limit)
    if peers and case.benchmark != "layer":
        alone = case.benchmark != "experts"
        if alone:
            truths["ffn"] = _ffn(case, works[None], _expert_ffn("reference"))
            variants += [_alone(case, works[None], backend, peers) for backend in backends if backend not in SCHEMES]
        for peer in peers:
            found = _peer(case, works, peer, "ffn" if alone else "vanilla")
            if isinstance(found, Row):
                absent.append(found)
                continue
            variants += found
            for variant in found:
                truths.setdefault(variant.truth, _ffn(case, works[variant.row.tau], _expert_ffn("reference")))
    return Group(case, variants, truths, absent, read=case.benchmark == "decode")


def _ours(
    case: Case, works: Works, tau: float | None, backend: str, truth: str, backends: Sequence[str], peers: Sequence[str]
) -> Variant:
    work, twins = works[tau], works[None]
    kind = "vanilla" if tau is None else "moepp"
    over: list[str] = []
    if backend in SCHEMES:
        over = [f"{kind}:{full}@{tau}" for full in backends if full not in SCHEMES]
    if case.benchmark == "experts":
        over = [f"{PEERS[peer].variant}@{tau}" for peer in peers if tau is None or PEERS[peer].identities]
    bound = None
    if tau is not None:
        bound = sum(item.ffn_flops for item in twins) / sum(item.ffn_flops for item in work)
    return Variant(
        row=case.row(f"{kind}:{backend}", PASSES[case.benchmark], tau=tau, bound=bound),
        run=_layers(case, work, backend),
        truth=truth,
        twin=None if tau is None else f"vanilla:{backend}@None",
        over=over,
        tolerance=QUANTIZED_TOLERANCE.get(backend),
        **_counts(case, work, backend),
    )


def _limit(case: Case, work: Sequence[LayerWork]) -> tuple[Variant, Run]:
    """oneDNN's products alone, and their truth: each expert takes its even share of rows, which lie there already.

    What the vanilla experts lose against it is dispatch; what it loses against the dense peak is small numbers of rows.
    """
    setting = _setting(case, work[0])
    experts, hidden = len(setting.gate_up), setting.config.hidden_size
    rows = max(1, setting.tokens * setting.config.top_k // experts)
    x = torch.randn(experts, rows, hidden, generator=torch.Generator().manual_seed(3)).to(case.dtype)
    expert = torch.arange(experts).repeat_interleave(rows).unsqueeze(-1)

    def products() -> list[Tensor]:
        packed = packed_weights.of(setting.gate_up, setting.down, case.dtype, pack)
        with torch.inference_mode():
            return [packed(x[index], index) for index in range(experts)]

    def pack() -> Packed:
        return pack_weights(setting.gate_up, setting.down)

    def truth() -> list[Tensor]:
        weight = torch.ones(len(expert), 1)
        with torch.inference_mode():
            y = expert_ffn(x.flatten(0, 1), expert, weight, setting.gate_up, setting.down, backend="reference")
            return list(y.view_as(x).unbind(0))

    flops = 6.0 * experts * rows * hidden * setting.config.intermediate_size
    return Variant(row=case.row("limit:onednn", "forward"), run=products, truth="limit", flops=flops), truth


def _alone(case: Case, work: Sequence[LayerWork], backend: str, peers: Sequence[str]) -> Variant:
    return Variant(
        row=case.row(f"ffn:{backend}", PASSES[case.benchmark]),
        run=_ffn(case, work, _expert_ffn(backend)),
        truth="ffn",
        over=[f"{PEERS[peer].variant}@None" for peer in peers],
        **_counts(case, work),
    )


def _peer(case: Case, works: Works, name: str, truth: str) -> list[Variant] | Row:
    """A peer at the vanilla routing and, where it knows identities, at every tau's; or why it cannot run."""
    peer = PEERS[name]
    variants = []
    for tau, work in works.items():
        if tau is not None and not (peer.identities and case.benchmark == "experts"):
            continue
        settings = [_setting(case, item) for item in work]
        if (reason := peer.why_not(settings[0])) is not None:
            return case.row(peer.variant, PASSES[case.benchmark], tau=tau, reason=reason)
        variants.append(
            Variant(
                row=case.row(peer.variant, PASSES[case.benchmark], tau=tau),
                run=_ffn(case, work, [peer.build(setting) for setting in settings]),
                truth=truth if tau is None else f"identities, tau {tau:g}",
                foreign=True,
                **_counts(case, work),
            )
        )
    return variants


def _counts(case: Case, work: Sequence[LayerWork], backend: str = "") -> dict[str, Any]:
    per_weight = bytes_per_weight(backend) if backend in SCHEMES else case.dtype.itemsize
    return {
        "passes": len(work),
        "flops": sum(item.ffn_flops for item in work) * (3 if case.benchmark == "train" else 1),
        "touched_bytes": sum(item.touched_weights for item in work) * per_weight,
    }


def _setting(case: Case, item: LayerWork) -> Setting:
    gate_up, down = item.layer.experts.gate_up_proj, item.layer.experts.down_proj
    assert isinstance(gate_up, torch.nn.Parameter)
    assert isinstance(down, torch.nn.Parameter)
    return Setting(item.layer.config, gate_up, down, len(item.x), case.benchmark == "train")


def _layers(case: Case, work: Sequence[LayerWork], backend: str) -> Run:
    layers = {item.layer: on_backend(item.layer, backend) for item in work}
    items = [(layers[item.layer], item) for item in work]
    if case.benchmark == "train":
        return _with_gradients(
            [(partial(item.forward, layer), item.x, list(layer.parameters())) for layer, item in items]
        )

    def run() -> list[Tensor]:
        with torch.inference_mode():
            if case.benchmark == "experts":
                return [layer.apply_experts(item.x, item.routing) for layer, item in items]
            return [item.forward(layer, item.x) for layer, item in items]

    return run


def _expert_ffn(backend: str) -> Callable[..., Tensor]:
    """Our FFN experts in the form of a peer, given the layer's tensors besides."""
    return partial(_call_expert_ffn, backend)


def _call_expert_ffn(backend: str, setting: Setting, x: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
    layout = setting.config.layout()
    dense = None
    if layout.num_zero_computation:  # as identities
        dense = DenseTerm((weight * (expert >= layout.ffn)).sum(-1), None, None)
    return expert_ffn(x, expert, weight, setting.gate_up, setting.down, dense=dense, backend=backend)


def _ffn(case: Case, work: Sequence[LayerWork], experts: Callable[..., Tensor] | Sequence[Experts]) -> Run:
    settings = [_setting(case, item) for item in work]
    calls = [partial(experts, s) for s in settings] if callable(experts) else list(experts)
    if case.benchmark == "train":
        found = []
        for call, setting, item in zip(calls, settings, work, strict=True):
            weight = item.routing.weight.detach().requires_grad_()
            found.append(
                (
                    lambda x, call=call, expert=item.routing.expert, weight=weight: call(x, expert, weight),
                    item.x,
                    [weight, setting.gate_up, setting.down],
                )
            )
        return _with_gradients(found)

    def run() -> list[Tensor]:
        with torch.inference_mode():
            return [
                call(item.x, item.routing.expert, item.routing.weight) for call, item in zip(calls, work, strict=True)
            ]

    return run


def _with_gradients(passes: Sequence[tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]]) -> Run:
    """Forward and backward of each; the results are outputs and gradients of tokens and weights."""
    prepared = []
    for forward, x, weights in passes:
        generator = torch.Generator(x.device).manual_seed(2)
        upstream = torch.empty_like(x).normal_(generator=generator)
        prepared.append((forward, x.detach().requires_grad_(), weights, upstream))

    def run() -> list[Tensor]:
        found = []
        for forward, x, weights, upstream in prepared:
            y = forward(x)
            found += [y.detach(), *torch.autograd.grad(y, [x, *weights], upstream)]
        return found

    return run
