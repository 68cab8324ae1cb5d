"""The Hugging Face model. Importing this registers it with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .accounting import Accounting, account
from .configuration_moepp import MoEPPConfig, PublishedConfig
from .heads import MoEPPForSequenceClassification, MoEPPForTokenClassification
from .loading import load_config, load_model, model_folder
from .modeling_moepp import MoEPPForCausalLM, MoEPPModel, MoEPPPreTrainedModel, real_tokens
from .presets import PRESETS, preset
from .quantize import quantize_experts

AutoConfig.register(MoEPPConfig.model_type, MoEPPConfig)
AutoConfig.register(PublishedConfig.model_type, PublishedConfig)
AutoModel.register(MoEPPConfig, MoEPPModel)
AutoModelForCausalLM.register(MoEPPConfig, MoEPPForCausalLM)
AutoModelForSequenceClassification.register(MoEPPConfig, MoEPPForSequenceClassification)
AutoModelForTokenClassification.register(MoEPPConfig, MoEPPForTokenClassification)
# Where Trainer looks whether a model predicts the next token, to shift the labels that it smooths.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MoEPPConfig.model_type] = MoEPPForCausalLM.__name__

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
