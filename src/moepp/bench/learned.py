"""A trained model's routing: what its layers are given and choose on text."""

import dataclasses
from itertools import islice
from pathlib import Path

import torch

from ..data import DataSpec, load_corpus, load_tokenizer, sample_documents
from ..errors import ConfigError, DataError
from ..model import load_model
from .work import LayerWork, capture_work, exact_share_routing, to_device, vanilla_twin


@dataclasses.dataclass(frozen=True)
class Learned:
    """A trained MoE++ and, where there is one, its vanilla twin."""

    folder: Path
    twin: Path | None

    @classmethod
    def find(cls, folder: Path) -> "Learned":
        """A model's folder, or one with the models ``moepp`` and ``vanilla``, as the demo leaves it.

        Raises:
            DataError: there is no model.
        """
        if (folder / "config.json").is_file():
            return cls(folder, None)
        if all((folder / name / "config.json").is_file() for name in ("moepp", "vanilla")):
            return cls(folder / "moepp", folder / "vanilla")
        raise DataError(f"--model={str(folder)!r} holds no model; give the folder of a trained one, or the demo's")

    def work(self, tokens: int, *, dtype: torch.dtype, device: str) -> dict[float | None, list[LayerWork]]:
        """All layers' work on about so many tokens of this Python's library, by tau, the twin's under None.

        Without a trained twin, the vanilla layers have the same FFN experts and tokens and an even routing.
        """
        text = "\n".join(islice(sample_documents(load_corpus(DataSpec()), 16 * tokens + 4096), None))
        ours = _capture(self.folder, text, tokens, dtype, device)
        if self.twin is not None:
            theirs = _capture(self.twin, text, tokens, dtype, device)
        else:
            theirs = []
            for item in ours:
                twin = vanilla_twin(item.layer)
                routing = to_device(exact_share_routing(twin.config, len(item.x), seed=0), item.x.device)
                theirs.append(LayerWork(twin, item.x, routing, None, prescribed=True))
        return {ours[0].layer.config.tau: ours, None: theirs}


def _capture(folder: Path, text: str, tokens: int, dtype: torch.dtype, device: str) -> list[LayerWork]:
    model = load_model(folder, dtype=dtype, device=device)
    tokenizer = load_tokenizer(str(folder), vocab_size=model.config.vocab_size)
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]  # pyright: ignore[reportArgumentType]
    length = min(tokens, model.config.max_position_embeddings)
    if len(ids) < tokens:
        raise ConfigError(f"--tokens={tokens} is more than the {len(ids)} of the text at hand; lower it")
    blocks = ids[: tokens // length * length].view(-1, length).to(device)
    work = capture_work(model, input_ids=blocks, use_cache=False)
    if any(item.layer.config.eval_capacity_factor is not None for item in work):
        raise ConfigError(f"{folder} drops assignments in evaluation; benchmark a model without eval_capacity_factor")
    return work
