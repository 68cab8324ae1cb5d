"""Language models for the harness: its own around one of ours, with the routing counted, and two baselines.

Requests, batches and scores are the harness's, so that its own command gives the same numbers. It pads batches on the
right and passes no attention mask: in evaluation nothing that comes later changes a token, and the counts leave the
padding out.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data import unit_hash
from ..errors import DataError
from ..layers import Routing, RoutingStats
from ..model import MoEPPForCausalLM

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

    HFLM = Any  # the decorator on it hides what it is
else:
    from lm_eval.models.huggingface import HFLM

Request = tuple[tuple[str, str], list[int], list[int]]
"""What the harness scores: texts, and the tokens of context and continuation."""


class RoutedLM(HFLM):
    """The harness's model around ours, which counts the routing of the tokens that the requests made it read.

    Attributes:
        stats: each layer's counts since :meth:`reset`. A generation counts its prompt.
        cut: requests since then whose context was cut from the left.
    """

    def __init__(self, model: MoEPPForCausalLM, tokenizer: "PreTrainedTokenizerBase", *, batch_size: int) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self.layout = model.config.moe.layout()
        self.reset()

    def reset(self) -> None:
        """Starts counting anew."""
        self.stats: list[RoutingStats] = []
        self.cut = 0
        self._batch: tuple[Sequence[Routing], int] | None = None
        self._lengths: list[int] = []

    def ffn_per_token(self) -> float:
        """FFN experts that a token went through, on average over tokens and layers."""
        per_layer = [layer.ffn_per_token(self.layout) for layer in self.stats]
        return sum(per_layer) / max(len(per_layer), 1)

    @property
    def max_gen_toks(self) -> int:
        """The harness's, or half of a context that has no room for so much."""
        return min(super().max_gen_toks, self.max_length // 2)

    def loglikelihood(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The harness's, without a progress bar for tokenising."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise DataError(f"an answer of {longest} tokens exceeds the model's context of {self.max_length}")
        self.cut += sum(len(before) + len(after) > self.max_length + 1 for _, before, after in requests)
        scores = super()._loglikelihood_tokens(requests, not sys.stderr.isatty(), override_bs)
        self._count_batch()
        return scores

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        self._count_batch()
        with torch.inference_mode():
            output: Any = self.model(inps, output_routing=True, use_cache=False)
        self._batch = output.routing, inps.shape[1]
        return output.logits

    def _select_cont_toks(self, logits: Tensor, contlen: int | None = None, inplen: int | None = None) -> Tensor:
        """The harness's; it is called for each row of a batch, in order, and knows the row's length."""
        assert inplen is not None
        self._lengths.append(inplen)
        return super()._select_cont_toks(logits, contlen=contlen, inplen=inplen)

    def _count_batch(self) -> None:
        """Counts the latest batch, whose rows' lengths are known only after its scores were taken."""
        if self._batch is not None and self._lengths:
            routing, width = self._batch
            lengths = torch.tensor(self._lengths, device=self.device).unsqueeze(-1)
            self._add(routing, torch.arange(width, device=self.device) < lengths)
        self._batch, self._lengths = None, []

    def _add(self, routing: Sequence[Routing], real: Tensor) -> None:
        counts = [RoutingStats.of(layer, mask=real.flatten()).detach() for layer in routing]
        self.stats = [a + b for a, b in zip(self.stats, counts, strict=True)] if self.stats else counts

    def generate_until(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[str]:
        room = self.max_length - self.max_gen_toks
        self.cut += sum(len(self.tok_encode(request.args[0])) > room for request in requests)
        return super().generate_until(requests, disable_tqdm=not sys.stderr.isatty())

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        real = generation_kwargs["attention_mask"].bool()

        def count_prompt(module: Any, args: Any, output: Any) -> None:
            hook.remove()
            self._add(output.routing, real)

        hook = self.model.register_forward_hook(count_prompt)
        return super()._model_generate(context, max_length, stop, output_routing=True, **generation_kwargs)


class UnigramLM(RoutedLM):
    """Scores a continuation by how often its tokens occur, whatever the context: what word counts can know."""

    def __init__(
        self,
        model: MoEPPForCausalLM,
        tokenizer: "PreTrainedTokenizerBase",
        texts: Iterable[str],
    ) -> None:
        super().__init__(model, tokenizer, batch_size=1)
        counts = torch.ones(model.config.vocab_size)  # one more than seen, so that nothing is impossible
        for text in texts:
            ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False), dtype=torch.int64)
            counts += torch.bincount(ids, minlength=len(counts))
        self.log_probs: list[float] = (counts / counts.sum()).log().tolist()
        self.most_frequent = int(counts.argmax())

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        return [
            (sum(self.log_probs[token] for token in tokens), all(token == self.most_frequent for token in tokens))
            for _, _, tokens in requests
        ]


class ShuffledLM(RoutedLM):
    """The same model, shown another item's context: what it can tell from the answers alone."""

    def loglikelihood(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        contexts = {(request.task_name, request.doc_id): request.args[0] for request in requests}
        order = sorted(contexts, key=lambda item: unit_hash(str(item)))
        shown = {item: contexts[other] for item, other in zip(order, order[1:] + order[:1], strict=True)}
        shuffled = [
            replace(request, arguments=(shown[request.task_name, request.doc_id], request.args[1]))  # pyright: ignore[reportGeneralTypeIssues]
            for request in requests
        ]
        return super().loglikelihood(shuffled, disable_tqdm)
