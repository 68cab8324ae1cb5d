"""What is measured on trained models with a clock: experts alone, and whole training steps; all variants in turns.

All in the precision that the scale trains in.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moepp.bench import Throughput, Timing, expert_throughput, interleave
from moepp.model import MoEPPForCausalLM

from .lab import Lab
from .variants import VANILLA, Variant

TOKENS = 2048
ROUNDS = 20
_STEPS = 8


def throughput(lab: Lab, variants: Sequence[Variant]) -> dict[str, dict[str, Throughput]]:
    """Expert throughput at synthetic and at learned routing, over vanilla's; models of the first seed that all have.

    Returns:
        By the variant's name and kind of routing.
    """
    every = dict.fromkeys([VANILLA, *variants])
    seed = min(set.intersection(*(set(lab.records(variant)) for variant in every)))
    models = _models(lab, variants, seed)
    if _trains_in_bf16(lab):
        for model in models.values():
            model.bfloat16()
    return expert_throughput(models, _tokens(lab, TOKENS), baseline=VANILLA.name, rounds=ROUNDS)


def step_seconds(lab: Lab, variants: Sequence[Variant], seed: int) -> dict[str, Timing]:
    """A training step of the scale's recipe, forward, backward, clipping and AdamW, at the trained models' routing."""
    recipe = lab.run(VANILLA, lab.scale.seeds[0]).recipe()
    batch = _tokens(lab, recipe.samples_per_step * recipe.data.sequence_length)
    bf16 = _trains_in_bf16(lab)
    steps = {name: _step(model, batch, bf16=bf16) for name, model in _models(lab, variants, seed).items()}
    return interleave(steps, rounds=_STEPS)


def _models(lab: Lab, variants: Sequence[Variant], seed: int) -> Mapping[str, MoEPPForCausalLM]:
    """These and vanilla's."""
    return {variant.name: lab.model(variant, seed) for variant in dict.fromkeys([VANILLA, *variants])}


def _trains_in_bf16(lab: Lab) -> bool:
    return bool(lab.run(VANILLA, lab.scale.seeds[0]).recipe().training.get("bf16"))


def _tokens(lab: Lab, count: int) -> Tensor:
    """(blocks, sequence length) of held-out text, every source in turn."""
    recipe = lab.run(VANILLA, lab.scale.seeds[0]).recipe()
    length = recipe.data.sequence_length
    blocks = lab.blocks(length)
    in_turns = [block for group in zip(*blocks.values(), strict=False) for block in group]
    assert len(in_turns) * length >= count
    return torch.stack(in_turns[: count // length]).to(lab.device)


def _step(model: MoEPPForCausalLM, batch: Tensor, *, bf16: bool):
    model.train()
    # A rate of 0: the weights stay, so every round does the same work.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

    def step() -> None:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
