"""Heads that classify sequences and tokens. Their loss takes the balance losses along, as Eq. 9 does."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.utils.generic import ModelOutput, can_return_tuple

from ..errors import ConfigError
from ..layers import Routing, RoutingStats
from .balance import balance_losses
from .configuration_moepp import MoEPPConfig
from .modeling_moepp import MoEPPModel, MoEPPPreTrainedModel, real_tokens


@dataclass
class MoEPPClassifierOutput(ModelOutput):
    loss: Tensor | None = None
    """task_loss + router_aux_loss_coef · balance_loss."""
    logits: Tensor | None = None
    task_loss: Tensor | None = None
    balance_loss: Tensor | None = None
    """Eq. 7 summed over the layers."""
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    routing: tuple[Routing, ...] | None = None


class MoEPPClassifier(MoEPPPreTrainedModel):
    """The decoder with ``config.num_labels`` scores for what a subclass selects."""

    accepts_loss_kwargs = False  # the losses are means: a Trainer that accumulates divides by its steps

    def __init__(self, config: MoEPPConfig) -> None:
        super().__init__(config)
        self.num_labels = int(config.num_labels)  # pyright: ignore[reportArgumentType]
        self.model = MoEPPModel(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()

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
        **kwargs: Any,
    ) -> MoEPPClassifierOutput:
        """Scores, and with ``labels`` the loss of ``config.problem_type`` plus the balance losses."""
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
        logits = self.score(self._select(outputs.last_hidden_state, input_ids, attention_mask))
        loss = task_loss = balance = None
        if labels is not None:
            task_loss = self.loss_function(logits=logits, pooled_logits=logits, labels=labels, config=self.config)
            mask = real_tokens(attention_mask, outputs.last_hidden_state.shape[1])
            stats = [RoutingStats.of(routing, mask=mask) for routing in outputs.routing]
            balance = balance_losses(stats, self.config, device=logits.device, training=self.training).sum()
            loss = task_loss + self.config.router_aux_loss_coef * balance
        return MoEPPClassifierOutput(
            loss=loss,
            logits=logits,
            task_loss=task_loss,
            balance_loss=balance,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            routing=outputs.routing if output_routing else None,
        )

    def _select(self, hidden: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """What is scored, from (batch, length, D) hidden states."""
        raise NotImplementedError


class MoEPPForSequenceClassification(MoEPPClassifier):
    """Scores each sequence at its last token that is not padding, on whichever side the padding is."""

    def _select(self, hidden: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        batch, length = hidden.shape[:2]
        real = real_tokens(attention_mask, length)
        pad = self.config.pad_token_id
        if real is not None:
            real = real.view(batch, length)
        elif input_ids is not None and pad is not None:
            real = input_ids != pad
        elif batch > 1:
            raise ConfigError(
                f"model.pad_token_id=None does not tell where each of {batch} sequences ends; "
                "pass the tokenizer's attention_mask, or set config.pad_token_id"
            )
        else:
            return hidden[:, -1]
        last = (real * torch.arange(length, device=hidden.device)).argmax(dim=-1)
        return hidden[torch.arange(batch, device=hidden.device), last]


class MoEPPForTokenClassification(MoEPPClassifier):
    """Scores every token."""

    def _select(self, hidden: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        return hidden


__all__ = ["MoEPPForSequenceClassification", "MoEPPForTokenClassification"]
