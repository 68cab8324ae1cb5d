"""``experts_implementation`` is the one switch for the experts' kernels: every choice runs, and runs what it says."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from moepp.errors import ConfigError
from moepp.model import MoEPPForCausalLM

from ..tolerances import assert_close
from .factory import fill, gradients, tiny_config, tiny_model, tokens
from .kernels import RUNS, count_all

TRAINS = [name for name in RUNS if name != "onednn"]  # which computes no gradients
RAN = {name: set(RUNS[name]) for name in TRAINS} | {"auto": {"fused"}}
"""The kernels of a pass with gradients."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of each kernel, ours, transformers' and torch's."""
    return count_all(monkeypatch)


def built(implementation: str | None) -> MoEPPForCausalLM:
    """The switch given to the constructor, in evaluation mode, with known weights."""
    chosen = {} if implementation is None else {"experts_implementation": implementation}
    model = AutoModelForCausalLM.from_config(tiny_config(), **chosen).eval()
    fill(model)
    return model


def run(model: MoEPPForCausalLM, **kwargs: object) -> tuple[Tensor, dict[str, Tensor]]:
    ids = tokens(2, 12)
    out = model(ids, labels=ids, **kwargs)
    out.loss.backward()
    return out.logits, gradients(model)


@pytest.mark.parametrize("implementation", [None, *RUNS])
def test_constructor_argument_chooses_the_kernel(implementation: str | None, calls: Counter[str]) -> None:
    with torch.no_grad():
        built(implementation)(tokens(2, 12))
    assert calls == RUNS[implementation or "auto"]


@pytest.mark.parametrize("implementation", RUNS)
def test_field_of_the_configuration_chooses_the_kernel(implementation: str, calls: Counter[str]) -> None:
    with torch.no_grad():
        tiny_model(experts_implementation=implementation)(tokens(2, 12))
    assert calls == RUNS[implementation]


@pytest.mark.parametrize("implementation", [None, *RUNS])
def test_from_pretrained_chooses_the_kernel(implementation: str | None, calls: Counter[str], tmp_path: Path) -> None:
    tiny_model(experts_implementation="reference").save_pretrained(tmp_path)
    chosen = {} if implementation is None else {"experts_implementation": implementation}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, **chosen)
    with torch.no_grad():
        model(tokens(2, 12))
    # A choice of kernel belongs to a process, not to a checkpoint: saving "reference" above is not remembered.
    assert calls == RUNS[implementation or "auto"]


def test_set_experts_implementation_changes_the_kernel_of_a_built_model(calls: Counter[str]) -> None:
    model = built("reference")
    for implementation, expected in RUNS.items():
        calls.clear()
        model.set_experts_implementation(implementation)
        with torch.no_grad():
            model(tokens(2, 12))
        assert calls == expected, implementation


@pytest.mark.parametrize("implementation", TRAINS)
def test_every_choice_gives_equal_logits_and_gradients(implementation: str, calls: Counter[str]) -> None:
    logits, grads = run(built(implementation))
    assert set(calls) == RAN[implementation]
    expected, reference = run(built("reference"))
    assert_close(logits, expected, name="logits")
    for name, gradient in grads.items():
        assert_close(gradient, reference[name], name=f"gradient of {name}")


def test_onednn_gives_equal_logits(calls: Counter[str]) -> None:
    ids = tokens(2, 12)
    with torch.no_grad():
        logits = built("onednn")(ids).logits
        assert calls == RUNS["onednn"]
        assert_close(logits, built("reference")(ids).logits, name="logits")


@pytest.mark.parametrize("implementation", TRAINS)
def test_every_choice_runs_a_batch_in_which_no_token_chooses_an_ffn_expert(
    implementation: str, calls: Counter[str]
) -> None:
    ffn, experts = 4, 8
    bias = torch.zeros(experts)
    bias[:ffn] = -torch.inf
    model = built(implementation)
    made = []
    for parameter in model.model.layers[0].mlp.experts.parameters():
        parameter.register_post_accumulate_grad_hook(made.append)
    logits, grads = run(model, selection_bias=bias)
    assert len(made) == 2  # of zeros, not none: ranks that share experts wait for each other's gradients
    assert set(calls) <= RAN[implementation]
    expected, reference = run(built("reference"), selection_bias=bias)
    assert_close(logits, expected, name="logits")
    for name, gradient in grads.items():
        assert_close(gradient, reference[name], name=f"gradient of {name}")
    assert not any(g.any() for name, g in grads.items() if ".experts." in name)
    with torch.no_grad():
        routing = model(tokens(2, 12), selection_bias=bias, output_routing=True).routing
        assert all((layer.expert >= ffn).all() for layer in routing)
        assert (model(tokens(2, 12)).logits - logits).abs().max() > 0.1


def test_unknown_name_names_the_nearest() -> None:
    message = r"experts_implementation='gruoped' does not exist; did you mean 'grouped'\?"
    with pytest.raises(ConfigError, match=message):
        built("gruoped")
    with pytest.raises(ConfigError, match=message):
        built(None).set_experts_implementation("gruoped")


def test_unknown_name_lists_ours_and_transformers_names() -> None:
    with pytest.raises(ConfigError, match=r"auto, batched_mm, .*eager, .*grouped, grouped_mm, moepp_auto, .*reference"):
        built("xyz")


def test_model_module_holds_the_text_that_transformers_looks_for() -> None:
    """Without it ``set_experts_implementation`` is a silent no-op."""
    source = Path(sys.modules[MoEPPForCausalLM.__module__].__file__).read_text(encoding="utf-8")
    assert "\n@use_experts_implementation" in source
    assert MoEPPForCausalLM._can_set_experts_implementation()


@pytest.mark.usefixtures("unchecked")
def test_model_compiles_into_one_graph() -> None:
    model = tiny_model(experts_implementation="triton", num_hidden_layers=2, capacity_factor=1.1).train()
    ids = tokens(2, 12)
    expected = model(ids, labels=ids).loss
    expected.backward()
    eager = gradients(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(ids, labels=ids, use_cache=False).loss
    loss.backward()
    assert_close(loss, expected, name="loss")
    for name, gradient in gradients(model).items():
        assert_close(gradient, eager[name], name=f"gradient of {name}")
