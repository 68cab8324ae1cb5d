"""``torch.compile`` of the whole model, in one graph, and of the decoding step with a static cache."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from transformers import CompileConfig

from ..model.factory import gradients, tiny_model, tokens
from ..tolerances import assert_close

pytestmark = pytest.mark.usefixtures("unchecked", "recompiled")


@pytest.fixture
def recompiled() -> Iterator[None]:
    """Nothing is left of what other tests compiled, and counted."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def targets(graph: torch.fx.GraphModule) -> set[str]:
    return {str(node.target) for node in graph.graph.nodes}


@pytest.mark.parametrize("implementation", ["auto", "grouped_mm"])
def test_forward_and_backward_compile_into_one_graph(implementation: str) -> None:
    """With capacity, dropped tokens and the balance losses; no product is anybody else's than the one asked for."""
    model = tiny_model(experts_implementation=implementation, num_hidden_layers=2, capacity_factor=1.1).train()
    ids = tokens(2, 12)
    expected = model(ids, labels=ids).loss
    expected.backward()
    eager = gradients(model)

    seen: list[set[str]] = []
    backend = torch._dynamo.lookup_backend("aot_eager")

    def record(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        seen.append(targets(graph))
        return backend(graph, inputs)

    loss = torch.compile(model, fullgraph=True, backend=record)(ids, labels=ids, use_cache=False).loss
    loss.backward()
    assert_close(loss, expected, name="loss")
    for name, gradient in gradients(model).items():
        assert_close(gradient, eager[name], name=f"gradient of {name}")
    assert len(seen) == 1
    product = {"auto": "moepp.grouped_product", "grouped_mm": "transformers.grouped_mm_fallback"}
    assert any(product[implementation] in name for name in seen[0])


def test_one_graph_serves_every_batch_and_length() -> None:
    model = tiny_model(num_hidden_layers=2)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for shape in ((2, 12), (3, 7)):
        ids = tokens(*shape)
        with torch.no_grad():
            assert_close(compiled(ids, use_cache=False).logits, model(ids).logits)
    assert counters["stats"]["unique_graphs"] == 1


def test_generation_compiles_its_step_with_a_static_cache() -> None:
    """By the default compiler, on a CPU too, into one graph for all steps. Without vector code: it builds faster."""
    model, ids = tiny_model(num_hidden_layers=2), tokens(2, 5)
    settings = {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(ids, **settings)
    assert not counters["stats"]
    choice = CompileConfig(fullgraph=True, mode="default")
    choice._compile_all_devices = True
    with inductor.patch({"cpp.vec_isa_ok": False, "compile_threads": 1}):
        found = model.generate(ids, **settings, cache_implementation="static", compile_config=choice)
    assert torch.equal(found, expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["inductor"]
    assert not counters["graph_break"]
