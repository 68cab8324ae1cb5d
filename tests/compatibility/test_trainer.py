"""transformers' Trainer as it is, and bare accelerate: nothing of ours between them and the model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainingArguments

from moepp.model import MoEPPForCausalLM

from ..model.factory import gradients, left_padded, tiny_model, tokens
from ..tolerances import assert_close

# The argument's successor does not exist in the oldest transformers that we support.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")

IGNORED, ROWS = -100, 8


def rows() -> list[dict[str, Tensor]]:
    """Sequences of unequal lengths, padded and ignored where they are."""
    ids, mask = left_padded([tokens(1, 5 + index, seed=index)[0] for index in range(ROWS)])
    labels = ids.masked_fill(mask == 0, IGNORED)
    names = ("input_ids", "attention_mask", "labels")
    return [dict(zip(names, row, strict=True)) for row in zip(ids, mask, labels, strict=True)]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    fields: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return TrainingArguments(output_dir=str(folder), **(fields | changes))


def trainer(folder: Path, model: MoEPPForCausalLM | None = None, **changes: Any) -> Trainer:
    model = tiny_model(router_aux_loss_coef=0.5) if model is None else model
    return Trainer(model, arguments(folder, **changes), train_dataset=rows())


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def first_gradients(folder: Path, model: MoEPPForCausalLM, **changes: Any) -> dict[str, Tensor]:
    """What the optimiser sees at Trainer's first step, unclipped."""
    seen: dict[str, Tensor] = {}

    class Watching(Trainer):
        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            seen.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            return super()._get_grad_norm(model, grad_norm)

    watching = Watching(model, arguments(folder, max_steps=1, **changes), train_dataset=rows())
    watching.train()
    return seen


def test_trainer_lowers_the_loss_and_every_parameter_learns(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=12)
    before = weights(run.model)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert not [name for name, weight in weights(run.model).items() if torch.equal(weight, before[name])]


def test_trainer_resumes_a_checkpoint_to_the_same_weights(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", save_strategy="steps", save_steps=3)
    whole.train()
    model = MoEPPForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-3")
    resumed = trainer(tmp_path / "resumed", model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    for name, weight in weights(whole.model).items():
        assert torch.equal(weights(resumed.model)[name], weight), name


def test_accumulated_batches_give_the_gradient_that_one_large_batch_gives(tmp_path: Path) -> None:
    """Rows of unequal lengths: a mean of the micro-batches' means would be another gradient.

    Without the balance loss, which is each forward pass's own, see tests/model/test_loss.py.
    """
    fields = {"router_aux_loss_coef": 0.0}
    large = first_gradients(tmp_path, tiny_model(**fields), per_device_train_batch_size=4)
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    accumulated = first_gradients(tmp_path, tiny_model(**fields), **small)
    assert len(large) == len(list(tiny_model().parameters()))
    for name, gradient in large.items():
        assert_close(accumulated[name], gradient, name=name)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_through_trainer_changes_no_gradient(use_reentrant: bool, tmp_path: Path) -> None:
    plain = first_gradients(tmp_path, tiny_model(router_aux_loss_coef=0.5))
    model = tiny_model(router_aux_loss_coef=0.5)
    runs = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    kwargs = {"use_reentrant": use_reentrant}
    found = first_gradients(tmp_path, model, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)
    assert len(runs) == 2 * len(model.model.layers)
    for name, gradient in plain.items():
        assert_close(found[name], gradient, name=name)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    predicted, labels = np.asarray(prediction.predictions)[:, :-1].argmax(-1), np.asarray(prediction.label_ids)[:, 1:]
    return {"accuracy": float((predicted == labels)[labels != IGNORED].mean())}


def test_trainer_evaluates_gathers_logits_alone_and_computes_metrics(tmp_path: Path) -> None:
    model = tiny_model()
    data = rows()
    run = Trainer(model, arguments(tmp_path), eval_dataset=data, compute_metrics=accuracy)
    output = run.predict(data)
    assert np.asarray(output.predictions).shape == (ROWS, len(data[0]["labels"]), model.config.vocab_size)
    batch = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    model.eval()
    with torch.no_grad():
        out = model(**batch)
    expected = accuracy(EvalPrediction(out.logits.numpy(), batch["labels"].numpy()))
    metrics = run.evaluate()
    assert metrics["eval_accuracy"] == pytest.approx(expected["accuracy"])
    assert metrics["eval_loss"] == pytest.approx(out.loss.item(), rel=1e-4)


def test_label_smoothing_smooths_the_next_token(tmp_path: Path) -> None:
    """As for every model it leaves out what the model's own loss adds: the balance loss."""
    model = tiny_model()
    run = Trainer(model, arguments(tmp_path, label_smoothing_factor=0.1))
    batch = {name: torch.stack([row[name] for row in rows()]) for name in rows()[0]}
    logprobs = model(**batch).logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    chosen = -logprobs.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    smoothed = (0.9 * chosen - 0.1 * logprobs.mean(-1))[labels != IGNORED].mean()
    assert_close(run.compute_loss(model, dict(batch)), smoothed)


def test_bare_accelerate_trains_accumulates_saves_and_resumes(tmp_path: Path) -> None:
    def prepared() -> tuple[Accelerator, Any, Any, Any]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = tiny_model(router_aux_loss_coef=0.5).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        return accelerator, *accelerator.prepare(model, optimizer, DataLoader(rows(), batch_size=4))

    def epoch(accelerator: Accelerator, model: Any, optimizer: Any, batches: Any) -> float:
        losses = []
        for batch in batches:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        return sum(losses)

    accelerator, model, optimizer, batches = prepared()
    start = weights(model)
    halves = []
    for batch in batches:
        (model(**batch).loss / 2).backward()
        halves.append(1)
    expected = gradients(model)
    assert len(halves) == 2
    seen: dict[str, Tensor] = {}
    step = optimizer.optimizer.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.update({name: p.grad.clone() for name, p in model.named_parameters()})
        return step(*args, **kwargs)

    optimizer.optimizer.step = watched
    first = epoch(accelerator, model, optimizer, batches)
    for name, gradient in expected.items():
        assert_close(seen[name], gradient, name=name)
    later = [epoch(accelerator, model, optimizer, batches) for _ in range(7)]
    assert later[-1] < 0.9 * first

    accelerator.save_state(str(tmp_path))
    again, restored, other, batches = prepared()
    assert torch.equal(weights(restored)["lm_head.weight"], start["lm_head.weight"])
    again.load_state(str(tmp_path))
    for name, weight in weights(model).items():
        assert torch.equal(weights(restored)[name], weight), name
    state = optimizer.state_dict()["state"]
    assert all(torch.equal(s["exp_avg"], state[key]["exp_avg"]) for key, s in other.state_dict()["state"].items())
