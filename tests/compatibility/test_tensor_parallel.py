"""``from_pretrained(distributed_config=DistributedConfig(tp_size=2))`` in two processes equals one process."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from moepp.model import MoEPPForCausalLM

from ..model.factory import gradients, tiny_model, tokens
from ..tolerances import assert_close

PROCESSES = 2
SHARDED = {
    "lm_head.weight": 0,
    "model.embed_tokens.weight": 0,
    "self_attn.q_proj.weight": 0,
    "self_attn.k_proj.weight": 0,
    "self_attn.v_proj.weight": 0,
    "self_attn.o_proj.weight": 1,
    "mlp.experts.gate_up_proj": 1,
    "mlp.experts.down_proj": 2,
}
"""The dimension along which each is cut; all others are whole on every process."""
KINDS: dict[str, dict[str, Any]] = {"paper": {}, "released": {"gate": "tanh_mlp", "input_scale": 0.5, "top_k": 3}}


def built(kind: str) -> MoEPPForCausalLM:
    return tiny_model(router_aux_loss_coef=0.5, **KINDS[kind])


def measured(model: MoEPPForCausalLM) -> dict[str, Any]:
    ids = tokens(2, 12)
    with torch.no_grad():
        logits = model(ids).logits
    generated = model.generate(ids, max_new_tokens=4, do_sample=False)
    model(ids, labels=ids).loss.backward()
    grads = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in gradients(model).items()}
    return {"logits": logits, "generated": generated, "gradients": grads}


def one_of_two(rank: int, folder: Path, kind: str) -> None:
    """One process: what it holds and computes, for the test to read."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    torch._C._get_accelerator = lambda *_: torch.device("cpu")  # which transformers would cut the model for
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    model = MoEPPForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=PROCESSES))
    holds = {name: tuple((p.to_local() if isinstance(p, DTensor) else p).shape) for name, p in model.named_parameters()}
    torch.save({"holds": holds} | measured(model), folder / f"{rank}.pt")
    model.save_pretrained(folder / "saved")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=KINDS)
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("tensor-parallel")
    built(request.param).save_pretrained(folder)
    # Forked where no accelerator forbids it: others would spend seconds importing.
    method = "spawn" if torch.accelerator.is_available() else "fork"
    torch.multiprocessing.start_processes(one_of_two, (folder, request.param), PROCESSES, start_method=method)
    return request.param, folder


def results(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def test_each_process_holds_its_share_of_attention_and_experts_and_the_routers_whole(two: tuple[str, Path]) -> None:
    kind, folder = two
    for result in results(folder):
        for name, parameter in built(kind).named_parameters():
            cut = [dim for end, dim in SHARDED.items() if name.endswith(end)]
            shape = list(parameter.shape)
            for dim in cut:
                shape[dim] = -(-shape[dim] // PROCESSES)
            held = result["holds"][name]
            # The vocabulary is odd: its last share is smaller.
            assert list(held) == shape or (cut == [0] and held[0] == shape[0] - 1), name


def test_logits_and_generated_tokens_equal_those_of_one_process(two: tuple[str, Path]) -> None:
    kind, folder = two
    expected = measured(built(kind))
    for result in results(folder):
        assert_close(result["logits"], expected["logits"])
        assert torch.equal(result["generated"], expected["generated"])


def test_gradients_equal_those_of_one_process(two: tuple[str, Path]) -> None:
    kind, folder = two
    expected: dict[str, Tensor] = measured(built(kind))["gradients"]
    for result in results(folder):
        for name, gradient in expected.items():
            assert_close(result["gradients"][name], gradient, name=name)


def test_what_two_processes_save_is_the_whole_model(two: tuple[str, Path]) -> None:
    kind, folder = two
    saved = MoEPPForCausalLM.from_pretrained(folder / "saved").state_dict()
    for name, tensor in built(kind).state_dict().items():
        assert torch.equal(saved[name], tensor), name
