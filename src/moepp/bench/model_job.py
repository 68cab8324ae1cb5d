"""One model, trained or generating, in a process of its own: ``python -m moepp.bench.model_job JOB``.

Its own, because the peak memory of a process says what a model needs only if no other was in it. The job is JSON, and
so is the last line of the output: an outcome.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..layers import Routing
from ..model import MoEPPConfig, MoEPPForCausalLM
from .model import Job, Outcome
from .sizes import model_config
from .work import exact_share_routing

WARMUP_STEPS = 1  # it makes the optimizer's state
TABLE = 4096  # tokens after which a synthetic routing repeats itself


class ExactShares:
    """Sends each expert of a layer its share of tau's balance, whatever the router says; weights are the router's."""

    def __init__(self, config: MoEPPConfig, seed: int) -> None:
        self.expert = exact_share_routing(config.moe, TABLE, seed).expert
        self.position = 0

    def __call__(self, routing: Routing) -> Routing:
        rows = (torch.arange(len(routing.expert)) + self.position) % TABLE
        self.position = (self.position + len(rows)) % TABLE
        expert = self.expert[rows]
        return routing._replace(expert=expert, weight=routing.probs.gather(-1, expert))


class StepTimes(TrainerCallback):
    """Seconds from the end of one optimizer step to the end of the next: all that a user waits for."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.ends.append(time.perf_counter())


def build(job: Job) -> PreTrainedModel:
    """The variant with fresh weights. Dropless: what capacity drops would be saved work that Mixtral does."""
    who, implementation = job.variant.split(":")
    config = model_config(job.size, capacity_factor=None, eos_token_id=None, pad_token_id=0, vanilla=who != "moepp")
    torch.manual_seed(job.seed)
    if who == "transformers":
        return MixtralForCausalLM._from_config(mixtral_config(config), experts_implementation=implementation)
    model = MoEPPForCausalLM._from_config(config, experts_implementation=implementation)
    if job.routing == "synthetic":
        edits = [ExactShares(config, seed) for seed in range(config.num_hidden_layers)]
        model.model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "routing_edit": edits}), with_kwargs=True
        )
    return model


def mixtral_config(config: MoEPPConfig) -> MixtralConfig:
    """Mixtral of a vanilla model's sizes, with its balance loss."""
    same = {name: getattr(config, name) for name in MixtralConfig.__annotations__ if hasattr(config, name)}
    return MixtralConfig(**same, output_router_logits=True)


def train(job: Job, model: PreTrainedModel) -> tuple[list[float], Tensor]:
    """Seconds of each step in transformers' Trainer with its default optimizer, on random tokens; and a batch."""
    ids = random_tokens(job, model, samples=job.batch * (WARMUP_STEPS + job.steps))
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=WARMUP_STEPS + job.steps,
            per_device_train_batch_size=job.batch,
            bf16=job.dtype == "bfloat16",
            use_cpu=True,
            seed=job.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        samples: Any = [{"input_ids": row, "labels": row} for row in ids]
        trainer = Trainer(model, arguments, train_dataset=samples, callbacks=[times])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds = [end - start for start, end in zip(times.ends, times.ends[1:], strict=False)]
    return seconds[WARMUP_STEPS - 1 :], ids[: job.batch]


def generate(job: Job, model: PreTrainedModel) -> tuple[list[float], Tensor]:
    """Seconds of each generation after random prompts, greedy and with a dynamic cache; and the text."""
    model = model.to(getattr(torch, job.dtype)).eval()
    prompt = random_tokens(job, model, samples=job.batch)
    settings: dict[str, Any] = {"do_sample": False, "attention_mask": torch.ones_like(prompt)}
    text = model.generate(prompt, max_new_tokens=2, **settings)  # pyright: ignore[reportCallIssue]
    seconds = []
    for _ in range(job.steps):
        start = time.perf_counter()
        text = model.generate(prompt, max_new_tokens=job.new_tokens, **settings)  # pyright: ignore[reportCallIssue]
        seconds.append(time.perf_counter() - start)
        assert text.shape == (job.batch, job.sequence + job.new_tokens)
    return seconds, text


def random_tokens(job: Job, model: PreTrainedModel, *, samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(job.seed)
    return torch.randint(1, model.config.vocab_size, (samples, job.sequence), generator=generator)


def ffn_per_token(model: PreTrainedModel, ids: Tensor) -> float:
    """FFN experts that a token goes through, the mean over layers."""
    if not isinstance(model, MoEPPForCausalLM):
        return float(model.config.num_experts_per_tok)
    with torch.no_grad():
        stats = model.eval()(ids, labels=ids).routing_stats
    return statistics.mean(layer.ffn_per_token(model.config.moe.layout()) for layer in stats)


def run(job: Job) -> Outcome:
    """Builds the model and measures it."""
    torch.set_num_threads(job.threads)
    model = build(job)
    seconds, ids = train(job, model) if job.task == "training" else generate(job, model)
    return Outcome(
        seconds=seconds,
        peak_memory_bytes=peak_memory(),
        parameters=model.num_parameters(),
        ffn_per_token=ffn_per_token(model, ids),
    )


def peak_memory() -> int:
    """Bytes that this process has had in memory at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def main(arguments: Sequence[str]) -> None:
    """Runs the job in the first argument and writes the outcome."""
    outcome = run(Job(**json.loads(arguments[0])))
    sys.stdout.write("\n" + json.dumps(asdict(outcome)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
