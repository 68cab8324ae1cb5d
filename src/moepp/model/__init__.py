"""The Hugging Face model. Importing this registers it with AutoConfig, AutoModel and AutoModelForCausalLM."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .accounting import Accounting, account
from .configuration_moepp import MoEPPConfig
from .loading import load_config, load_model, model_folder
from .modeling_moepp import MoEPPForCausalLM, MoEPPModel, MoEPPPreTrainedModel, real_tokens
from .presets import PRESETS, preset
from .quantize import quantize_experts

AutoConfig.register(MoEPPConfig.model_type, MoEPPConfig)
AutoModel.register(MoEPPConfig, MoEPPModel)
AutoModelForCausalLM.register(MoEPPConfig, MoEPPForCausalLM)

__all__ = [
    "PRESETS",
    "Accounting",
    "MoEPPConfig",
    "MoEPPForCausalLM",
    "MoEPPModel",
    "MoEPPPreTrainedModel",
    "account",
    "load_config",
    "load_model",
    "model_folder",
    "preset",
    "quantize_experts",
    "real_tokens",
]
