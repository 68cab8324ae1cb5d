"""Weights come out the same however they are spread, and no process ever holds them all."""

import hashlib
import resource
from typing import Any

import pytest
import torch
import torch.distributed as dist

from moepp.model import MoEPPConfig
from moepp.train.distributed import build_model, local
from moepp.train.initialise import initialise
from moepp.train.layout import Layout

from .processes import run_processes
from .runs import whole

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_ffn_experts": 4,
    "max_position_embeddings": 64,
    "residual_init_std": 0.1,
    "pad_token_id": 0,
}
LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 2, 2), (1, 4, 1), (1, 4, 2), (1, 4, 4), (2, 2, 2)]
KINDS: list[dict[str, Any]] = [{}, {"tie_word_embeddings": True}, {"gate": "tanh_mlp"}, {"num_shared_experts": 1}]


def _digests(kinds: list[dict[str, Any]], layout: tuple[int, int, int]) -> list[tuple[str, int, float]]:
    found = []
    for kind in kinds:
        model = build_model(MoEPPConfig(**SMALL | kind), Layout(*layout, dist.get_rank()), device="cpu")
        initialise(model, seed=3)
        digest = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            digest.update(name.encode() + whole(tensor).detach().numpy().tobytes())
        held = sum(local(p).numel() for p in model.parameters())
        ids = torch.arange(32).unsqueeze(0)
        found.append((digest.hexdigest(), held, model(input_ids=ids, labels=ids).loss.item()))
    return found


@pytest.fixture(scope="module")
def alone() -> list[tuple[str, int, float]]:
    return run_processes(1, _digests, KINDS, (1, 1, 1))[0]


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_gathered_weights_are_bit_equal_for_every_layout(
    layout: tuple[int, int, int], alone: list[tuple[str, int, float]]
) -> None:
    replicate, fsdp, _ = layout
    ranks = run_processes(replicate * fsdp, _digests, KINDS, layout)
    for kind, (digest, count, loss) in enumerate(alone):
        assert {rank[kind][0] for rank in ranks} == {digest}, KINDS[kind]
        assert sum(rank[kind][1] for rank in ranks) == replicate * count  # no shard twice, none missing
        assert all(rank[kind][2] == pytest.approx(loss, rel=1e-6) for rank in ranks)


def _start(changes: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    model = build_model(MoEPPConfig(**SMALL | changes), Layout(), device="cpu")
    initialise(model, seed)
    return {name: p.detach() for name, p in model.named_parameters()}


def test_each_matrix_has_its_standard_deviation_and_a_seed_of_its_own() -> None:
    weights, other = _start({}, 0), _start({}, 1)
    for name, p in weights.items():
        if p.dim() == 1:
            assert (p == 1).all(), name
            continue
        std = 0.1 if name.endswith("residual.weight") else 0.02
        assert p.std().item() == pytest.approx(std, rel=3 / (2 * p.numel()) ** 0.5), name
        assert not torch.equal(p, other[name]), name
    first, second = (weights[f"model.layers.{i}.mlp.experts.gate_up_proj"] for i in (0, 1))
    assert not torch.equal(first, second)
    assert not weights["model.embed_tokens.weight"][SMALL["pad_token_id"]].any()


def test_a_vanilla_twin_starts_with_the_same_experts_and_attention() -> None:
    """What both have has the same names, and so the same numbers: one source of chance less between the two."""
    weights = _start({}, 0)
    vanilla = _start({"num_constant_experts": 0, "num_copy_experts": 0, "num_zero_experts": 0}, 0)
    for name, p in vanilla.items():
        if "router" not in name:
            assert torch.equal(p, weights[name]), name


def test_shared_experts_leave_the_others_start_as_it_is() -> None:
    weights, shared = _start({}, 0), _start({"num_shared_experts": 2}, 0)
    added = {f"model.layers.{i}.mlp.shared_experts.{name}_proj" for i in range(2) for name in ("gate_up", "down")}
    assert shared.keys() - weights.keys() == added
    assert all(torch.equal(p, shared[name]) for name, p in weights.items())
    assert all(shared[name].std().item() == pytest.approx(0.02, rel=0.05) for name in added)


def _growth() -> tuple[int, int]:
    """Bytes that this process's memory grew by while the model was made, and bytes of the whole model."""
    config = MoEPPConfig(
        **SMALL | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_ffn_experts": 8}
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = build_model(config, Layout(1, dist.get_world_size(), 1, dist.get_rank()), device="cpu")
    initialise(model, 0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return grown * 1024, sum(p.numel() * p.element_size() for p in model.parameters())


def test_no_process_ever_holds_the_whole_model() -> None:
    """A quarter of the 210 MB each, one module whole at a time, 25 MB, and the code that is imported meanwhile."""
    for grown, whole_model in run_processes(4, _growth):
        assert whole_model > 200e6
        assert grown < 0.7 * whole_model
