"""A model's FFN experts in 8 or 4 bits: less to read per token, which is what decoding waits for."""

from typing import TypeVar

from torch import nn

from ..errors import ConfigError
from ..layers import FFNExperts, MoE, QuantizedExperts
from ..ops.quantized import check_scheme

Model = TypeVar("Model", bound=nn.Module)


def quantize_experts(model: Model, scheme: str) -> Model:
    """Replaces the FFN experts, routed and shared, of every :class:`moepp.MoE` in ``model``, in place, layer by layer.

    Routers, zero-computation experts, attention and embeddings stay as they are. The originals are freed, unless
    somebody else holds them; afterwards the model is for inference on a CPU, and is not saved (save the original).

    Args:
        model: :class:`MoEPPForCausalLM` or any module with MoE layers.
        scheme: ``"int8"``: one scale per output channel; ``"int4"``: one per 32 weights of it.

    Returns:
        The same model.

    Raises:
        ConfigError: no such scheme, it cannot store weights of this shape, or there are no experts to quantise.
        BackendUnavailable: the weights are not on a CPU.
    """
    check_scheme(scheme)
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    if not layers:
        raise ConfigError("model has no MoE layers, hence no experts to quantise; give one that has")
    for layer in layers:
        layer.experts = _quantized(layer.experts, scheme)
        if layer.shared_experts is not None:
            layer.shared_experts = _quantized(layer.shared_experts, scheme)
    return model


def _quantized(experts: nn.Module, scheme: str) -> QuantizedExperts:
    if isinstance(experts, QuantizedExperts):
        raise ConfigError("model is quantised already; load it again to quantise it differently")
    if not isinstance(experts, FFNExperts):
        raise ConfigError(f"model's experts are wrapped in {type(experts).__name__}; merge the adapter, then quantise")
    experts.unpack()
    return QuantizedExperts(experts, scheme)
