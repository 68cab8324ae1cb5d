"""The MoE++ language model: a decoder of MoE layers with LLaMA's attention, norms and rotary embeddings, which are
transformers' own.

Routing is returned, never stashed: each layer hands its :class:`moepp.Routing` to the next, whose router reads the
logits (Eq. 6), and the losses, statistics and studies read the rest from the output.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.integrations.moe import use_experts_implementation
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils.generic import ModelOutput, can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..errors import BackendUnavailable, ConfigError, nearest
from ..layers import (
    FFNExperts,
    MoE,
    QuantizedExperts,
    Router,
    Routing,
    RoutingStats,
    ZeroComputationExperts,
)
from ..ops import BACKENDS
from .balance import GlobalCounts, balance_losses
from .configuration_moepp import MoEPPConfig
from .experts_interface import EXPERTS
from .released import UNUSED_IN_OURS, check_published

logger = logging.getLogger("moepp.model")
RoutingEdit = Callable[[Routing], Routing]


# transformers looks for the text of this decorator in the model class's own module, else the switch does nothing.
@use_experts_implementation(experts_interface=EXPERTS)
class MoEPPExperts(FFNExperts):
    """FFN experts behind transformers' switch; as they stand, they are its ``"eager"``."""

    def __init__(self, config: MoEPPConfig, *, shared: bool = False) -> None:
        super().__init__(config.moe, backend="reference", shared=shared)
        self.act_fn = nn.SiLU()  # read by transformers' implementations

    @property
    def kernel(self) -> str:
        """What the switch says, which is not what this module was made with."""
        return str(self.config._experts_implementation)  # pyright: ignore[reportAttributeAccessIssue]


class MoEPPDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention, pre-norm MoE++."""

    def __init__(self, config: MoEPPConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer_idx)  # pyright: ignore[reportArgumentType]
        shared = MoEPPExperts(config, shared=True) if config.num_shared_experts else None
        self.mlp = MoE(config.moe, first=layer_idx == 0, experts=MoEPPExperts(config), shared_experts=shared)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        previous: Tensor | None = None,
        *,
        token_mask: Tensor | None = None,
        routing_edit: RoutingEdit | None = None,
        selection_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """Returns the hidden states and the fields of the layer's routing.

        Flat, and ``previous`` positional, because reentrant checkpointing passes gradients through top-level tensors
        only: nested in a tuple, the routing would lose its gradient without a word.
        """
        attention, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attention
        y, routing = self.mlp(
            self.post_attention_layernorm(hidden_states),
            previous,
            mask=token_mask,
            selection_bias=selection_bias,
            edit=routing_edit,
        )
        return hidden_states + y, *routing


class MoEPPPreTrainedModel(PreTrainedModel):
    """What all MoE++ models share: initialisation and what transformers may switch."""

    config: MoEPPConfig
    config_class = MoEPPConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MoEPPDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [UNUSED_IN_OURS]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012 - transformers' own form
        "hidden_states": MoEPPDecoderLayer,
        "attentions": LlamaAttention,
    }

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Does nothing, like :meth:`MoEPPConfig.register_for_auto_class`."""

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Our ``auto`` unless another is asked for; our backends' names beside transformers'."""
        requested = "auto" if requested_experts is None else requested_experts
        names = ("eager", *EXPERTS)
        if requested not in names:
            raise ConfigError(f"experts_implementation={requested!r} does not exist; {nearest(requested, names)}")
        return requested if requested in BACKENDS else super().get_correct_experts_implementation(requested)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers'; a folder with the published checkpoint is loaded as it is, and must be whole.

        Raises:
            DataError, ConversionError: such a folder is damaged, or is not what its configuration says.
        """
        if not kwargs.get("weights_only", True):
            raise ConfigError("weights_only=False would let a checkpoint run code; leave it True")
        check_published(pretrained_model_name_or_path, kwargs.get("subfolder", ""))
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if getattr(model, "hf_quantizer", None) and any(type(e.gate_up_proj) is nn.Parameter for e in model._experts()):
            logger.warning(
                "quantization_config took linear layers only; the FFN experts, stacked, stay as they are: "
                "moepp.model.quantize_experts takes those"
            )
        return loaded

    @classmethod
    def maybe_distribute_model(cls, model: Any, distributed_config: Any, mesh_manager: Any) -> Any:
        """transformers', where the ``ep_implementation`` "auto" is ours."""
        if mesh_manager is not None and model.config.tie_word_embeddings:
            # FSDP2 wants tied weights in one of its groups: here the outermost, which takes what no other has.
            model._fsdp_plan = {name: style for name, style in model.fsdp_plan.items() if name.endswith("layers.*")}
        if mesh_manager is not None and distributed_config.ep_size > 1:
            from .expert_parallel import NAME  # registers itself

            if distributed_config.ep_implementation == "auto":
                distributed_config = replace(distributed_config, ep_implementation=NAME)
        return super().maybe_distribute_model(model, distributed_config, mesh_manager)

    @property
    def _weight_conversions(self) -> list[Any]:
        """What transformers would undo when it saves: nothing. What is saved is always in our own layout."""
        return []

    @_weight_conversions.setter
    def _weight_conversions(self, used: Any) -> None:
        pass

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """transformers'; quantised experts lie as this processor's kernels want them and are not saved."""
        if any(isinstance(module, QuantizedExperts) for module in self.modules()):
            raise ConfigError(
                "a model with quantised experts is not saved; save the original, quantise after loading it"
            )
        return super().save_pretrained(*args, **kwargs)

    def pack_for_inference(self) -> None:
        """Brings all experts' weights into the order that the fastest CPU backend reads, in place, layer by layer.

        Without it that backend keeps a packed copy beside the weights. Saving still works; :meth:`unpack` undoes it.

        Raises:
            BackendUnavailable: they cannot be packed here, and none is; says why.
        """
        try:
            for experts in self._experts():
                experts.pack_for_inference()
        except BackendUnavailable:
            self.unpack()
            raise

    def unpack(self) -> None:
        """Undoes :meth:`pack_for_inference`."""
        for experts in self._experts():
            experts.unpack()

    def _experts(self) -> list[FFNExperts]:
        return [module for module in self.modules() if isinstance(module, FFNExperts)]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Router | FFNExperts | ZeroComputationExperts):
            module.reset_parameters(std=self.config.initializer_range)


@dataclass
class MoEPPModelOutput(ModelOutput):
    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    routing: tuple[Routing, ...] | None = None
    """One per layer, for batch times sequence tokens; with ``output_routing=True``."""


@dataclass
class MoEPPCausalLMOutput(ModelOutput):
    loss: Tensor | None = None
    """lm_loss + router_aux_loss_coef · balance_loss (Eq. 9). With ``num_items_in_batch``, see the model's forward."""
    logits: Tensor | None = None
    lm_loss: Tensor | None = None
    balance_loss: Tensor | None = None
    """Eq. 7 summed over the layers, of this forward pass."""
    layer_balance_loss: Tensor | None = None
    """(layers,) its terms."""
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    routing: tuple[Routing, ...] | None = None
    routing_stats: tuple[RoutingStats, ...] | None = None
    """One per layer, padding left out: the counts that the balance loss was computed from."""


class MoEPPModel(MoEPPPreTrainedModel):
    """The decoder without a head."""

    def __init__(self, config: MoEPPConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(MoEPPDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)  # pyright: ignore[reportArgumentType]
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_routing: bool = False,
        routing_edit: RoutingEdit | Sequence[RoutingEdit | None] | None = None,
        selection_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> MoEPPModelOutput:
        """Args beyond transformers' usual:

        output_routing: return each layer's :class:`moepp.Routing`.
        routing_edit: applied in every layer after selection and before capacity, or one per layer.
        selection_bias: (E,) or (layers, E), added to the routing scores for choosing only.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        # Only positions that the caller gives may be those of packed sequences, and looking waits for the device.
        given_positions = position_ids
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=given_positions,
        )
        edits = routing_edit if isinstance(routing_edit, Sequence) else [routing_edit] * len(self.layers)
        biases = [None] * len(self.layers)
        if selection_bias is not None:
            biases = selection_bias.expand(len(self.layers), -1).unbind(0)

        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        token_mask = real_tokens(attention_mask, hidden_states.shape[1])
        previous, routings = None, []
        for layer, edit, bias in zip(self.layers, edits, biases, strict=True):
            hidden_states, *fields = layer(
                hidden_states,
                previous,
                token_mask=token_mask,
                routing_edit=edit,
                selection_bias=bias,
                attention_mask=causal_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
            routing = Routing(*fields)
            previous = routing.logits
            if output_routing:
                routings.append(routing)
        return MoEPPModelOutput(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values,
            routing=tuple(routings) if output_routing else None,
        )


class MoEPPGenerationConfig(GenerationConfig):
    """transformers reads generation settings out of a model's configuration, where ``top_k`` counts experts."""

    @classmethod
    def from_model_config(cls, model_config: PreTrainedConfig | dict[str, Any]) -> GenerationConfig:
        fields = model_config if isinstance(model_config, dict) else model_config.to_dict()
        config = GenerationConfig.from_model_config({k: v for k, v in fields.items() if k != "top_k"})
        # Else generation_config.json would say so too, and a top_k that a user saves there would be taken for experts.
        config._from_model_config = False
        return config


class MoEPPForCausalLM(MoEPPPreTrainedModel, GenerationMixin):
    """The decoder with a language-modelling head."""

    generation_config_class = MoEPPGenerationConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - transformers' own form
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012

    def __init__(self, config: MoEPPConfig) -> None:
        super().__init__(config)
        self.model = MoEPPModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        """Keeps the experts' top_k out of a generation config that was made from config.json."""
        super().adjust_generation_fn(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.generation_config._from_model_config:
            self.generation_config.top_k = None
            self.generation_config._from_model_config = False

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_routing: bool = False,
        logits_to_keep: int | Tensor = 0,
        global_counts: GlobalCounts | None = None,
        **kwargs: Any,
    ) -> MoEPPCausalLMOutput:
        """Next-token logits, and with ``labels`` the loss of Eq. 9.

        ``global_counts``, with ``balance_scope="global"``, remembers the choices of a step's other micro-batches;
        without it f of Eq. 7 is taken over the processes' running ones.

        ``num_items_in_batch``, the number of labels in the whole accumulated batch, makes the loss this forward pass's
        share of it: both of its terms are weighted by the share of the labels that are here, so that summing over
        the accumulation steps gives the mean, and beta means the same at any number of them.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_routing=output_routing or labels is not None,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])

        loss = lm_loss = layer_balance = stats = None
        if labels is not None:
            lm_loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
            mask = real_tokens(attention_mask, labels.shape[1])
            stats = tuple(RoutingStats.of(routing, mask=mask) for routing in outputs.routing)
            layer_balance = balance_losses(
                stats, self.config, device=logits.device, training=self.training, global_counts=global_counts
            )
            share = 1.0
            if (total := kwargs.get("num_items_in_batch")) is not None:
                shifted = kwargs.get("shift_labels")
                predicted = labels[..., 1:] if shifted is None else shifted
                share = (predicted != -100).sum() / total
            loss = lm_loss + self.config.router_aux_loss_coef * share * layer_balance.sum()
        return MoEPPCausalLMOutput(
            loss=loss,
            logits=logits,
            lm_loss=lm_loss,
            balance_loss=None if layer_balance is None else layer_balance.sum(),
            layer_balance_loss=layer_balance,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            routing=outputs.routing if output_routing else None,
            routing_stats=stats,
        )


def real_tokens(attention_mask: Tensor | None, length: int) -> Tensor | None:
    """(batch · length,) True for tokens that are not padding, from a 2D mask whose last columns are theirs.

    None, nobody is padding, for no mask and for the prepared 4D masks of static caches, which don't say.
    """
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        return None
    return attention_mask[:, -length:].reshape(-1).bool()


__all__ = ["MoEPPForCausalLM", "MoEPPModel", "MoEPPPreTrainedModel"]
