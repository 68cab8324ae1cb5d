"""TRL's SFTTrainer and DPOTrainer on toy sets.

TRL computes its loss from hidden states, past the model's own forward and its balance loss; :class:`Balanced` trains
with both. TRL's own ``router_aux_loss_coef`` weighs Mixtral's loss, which knows one kind of expert and pools the
layers: it is for models with ``output_router_logits``, which ours have not.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Trainer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from moepp.model import MoEPPForCausalLM

from ..model.factory import tiny_model

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
VOCAB = {token: index for index, token in enumerate([*SPECIAL, *map(chr, range(32, 127))])}
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
SETS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"{i}+{i}={2 * i}; " * (1 + i % 3)} for i in range(16)],
    "chat": [
        {"messages": [{"role": "user", "content": f"{i}+{i}?"}, {"role": "assistant", "content": f"{2 * i}"}]}
        for i in range(16)
    ],
    "preferences": [{"prompt": f"{i}+{i}=", "chosen": f"{2 * i}", "rejected": f"{2 * i + 1}"} for i in range(16)],
}
LORA: dict[str, Any] = {
    "target_modules": "all-linear",
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a character, and a chat template."""
    plain = Tokenizer(models.BPE(vocab=VOCAB, merges=[], unk_token="<unk>"))
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    made = PreTrainedTokenizerFast(tokenizer_object=plain, **names)
    made.chat_template = CHAT
    return made


def model(**changes: Any) -> MoEPPForCausalLM:
    fields = {"vocab_size": len(VOCAB), "pad_token_id": 0, "eos_token_id": 2, "router_aux_loss_coef": 0.5}
    return tiny_model(**(fields | changes))


def arguments(kind: Any, folder: Path, **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return kind(output_dir=str(folder), **(fields | changes))


class Balanced(SFTTrainer):
    """Trains with the model's own loss."""

    compute_loss = Trainer.compute_loss


def tuned(
    folder: Path, data: str, *, kind: type[SFTTrainer] = Balanced, beta: float = 0.5, lora: Any = None, **changes: Any
) -> SFTTrainer:
    trainer = kind(
        model(router_aux_loss_coef=beta),
        args=arguments(SFTConfig, folder, **changes),
        train_dataset=Dataset.from_list(SETS[data]),
        processing_class=tokenizer(),
        peft_config=lora,
    )
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("text", {}),
    "chat messages": ("chat", {}),
    "packed": ("text", {"packing": True, "max_length": 48}),
    "checkpointed": ("chat", {"gradient_checkpointing": True}),
}


@pytest.mark.parametrize("kind", [SFTTrainer, Balanced])
@pytest.mark.parametrize("case", CASES)
def test_sft_trainer_lowers_the_loss(case: str, kind: type[SFTTrainer], tmp_path: Path) -> None:
    data, changes = CASES[case]
    found = losses(tuned(tmp_path, data, kind=kind, **changes))
    assert len(found) == 8
    assert sum(found[-2:]) < 0.85 * sum(found[:2])


def test_training_without_padding_equals_training_with_it(tmp_path: Path) -> None:
    """Sequences in one row, told apart by their positions: none sees another."""
    padded = losses(tuned(tmp_path, "text", max_steps=3))
    in_one_row = losses(tuned(tmp_path, "text", max_steps=3, padding_free=True, max_length=None))
    assert in_one_row == pytest.approx(padded, rel=1e-4)


def test_the_balance_loss_is_left_out_by_sft_trainer_and_not_by_the_models_own_loss(tmp_path: Path) -> None:
    text = losses(tuned(tmp_path, "text", kind=SFTTrainer, beta=0.0))
    assert losses(tuned(tmp_path, "text", kind=SFTTrainer, beta=0.5)) == text
    assert losses(tuned(tmp_path, "text", beta=0.0)) == pytest.approx(text, rel=1e-3)
    assert losses(tuned(tmp_path, "text", beta=0.5))[0] > text[0] + 0.1


def test_trl_refuses_its_own_coefficient_for_a_loss_that_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"router_aux_loss_coef. is set to 0\.1 but MoEPPForCausalLM is not"):
        tuned(tmp_path, "text", kind=SFTTrainer, router_aux_loss_coef=0.1)


@pytest.mark.parametrize("kind", [SFTTrainer, Balanced])
def test_sft_trainer_trains_adapters_on_attention_and_experts(kind: type[SFTTrainer], tmp_path: Path) -> None:
    lora = LoraConfig(r=4, **LORA)
    trainer = tuned(tmp_path, "text", kind=kind, lora=lora, learning_rate=2e-2, max_steps=12)
    found = losses(trainer)
    assert sum(found[-2:]) < 0.9 * sum(found[:2])
    merged: Any = trainer.model
    before = dict(model().named_parameters())
    after = dict(merged.merge_and_unload().named_parameters())
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {name for name in before if ".experts." in name or ".self_attn." in name}


def test_dpo_trainer_learns_preferences(tmp_path: Path) -> None:
    trainer = DPOTrainer(
        model(),
        args=arguments(DPOConfig, tmp_path, learning_rate=1e-2),
        train_dataset=Dataset.from_list(SETS["preferences"]),
        processing_class=tokenizer(),
        peft_config=LoraConfig(r=4, **LORA),  # the model without the adapter is the reference
    )
    trainer.train()
    found = losses(trainer)
    assert found[0] == pytest.approx(0.6931, abs=1e-3)
    assert found[-1] < 0.6
