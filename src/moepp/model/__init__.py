"""The Hugging Face model. Importing this registers it with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .accounting import Accounting, account
from .configuration_moepp import MoEPPConfig
from .heads import MoEPPForSequenceClassification, MoEPPForTokenClassification
from .loading import load_config, load_model, model_folder
from .modeling_moepp import MoEPPForCausalLM, MoEPPModel, MoEPPPreTrainedModel, real_tokens
from .presets import PRESETS, preset
from .quantize import quantize_experts

AutoConfig.register(MoEPPConfig.model_type, MoEPPConfig)
AutoModel.register(MoEPPConfig, MoEPPModel)
AutoModelForCausalLM.register(MoEPPConfig, MoEPPForCausalLM)
AutoModelForSequenceClassification.register(MoEPPConfig, MoEPPForSequenceClassification)
AutoModelForTokenClassification.register(MoEPPConfig, MoEPPForTokenClassification)

__all__ = [
    "PRESETS",
    "Accounting",
    "MoEPPConfig",
    "MoEPPForCausalLM",
    "MoEPPForSequenceClassification",
    "MoEPPForTokenClassification",
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
