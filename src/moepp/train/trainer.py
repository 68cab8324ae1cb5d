"""transformers' Trainer with the paper's optimizer and schedule, routing in its logs and checkpoints written whole."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from ..config import MoEConfig
from ..data import StreamingData, ValidationData, merge_states
from ..errors import DataError
from ..model import MoEPPForCausalLM
from ..model.balance import GlobalCounts
from . import dcp, rng
from .alerts import RoutingAlerts
from .callbacks import StepClock
from .distributed import reshard, total
from .diverged import TrainingDiverged, bad_weights, diagnose
from .export import save_configuration
from .layout import Layout
from .metrics import Window, rank_imbalance
from .recipe import Optimization
from .saver import RNG_FILE, SCHEDULE_FILE, Saver, Snapshot
from .validation import mean_loss


class MoEPPTrainer(Trainer):
    """Trains a :class:`moepp.model.MoEPPForCausalLM`.

    Args:
        optimization: rates, decay and clipping; they agree with ``args``, which carries what Trainer itself reads.
        identity: what a run must share with a checkpoint to resume from it; sealed into each.
        validation: held-out sets by source.
        weights: of the sources in the mixture.
        layout: the processes that train together.
        loader: this process's micro-batches of ``train_dataset``, from the first step to take on.
        patient: what to wait in for the disk.
        carried: files in the run's folder that each checkpoint takes along.
    """

    def __init__(
        self,
        *args: Any,
        optimization: Optimization,
        identity: Mapping[str, Any],
        validation: dict[str, ValidationData],
        weights: dict[str, float],
        layout: Layout,
        loader: DataLoader[Any],
        patient: Callable[[], AbstractContextManager[None]] = nullcontext,
        carried: Sequence[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, eval_dataset=validation or None, **kwargs)  # pyright: ignore[reportArgumentType]
        self.optimization = optimization
        self.validation = validation
        self.weights = weights
        self.layout = layout
        self.loader = loader
        self.run = Path(str(self.args.output_dir))
        self.moe: MoEConfig = cast(MoEPPForCausalLM, self.model).config.moe
        self.window = Window()
        self.global_counts = GlobalCounts()
        self.clock = StepClock()
        self.add_callback(self.clock)
        self.alerts = RoutingAlerts(self.moe)
        self._batches: list[dict[str, Tensor]] = []  # of the running step, to find where a loss went wrong
        self._step_loss: float | Tensor = 0.0
        self.carried = carried
        on_gpu = self.args.device.type == "cuda"
        keep = self.args.save_total_limit
        self.saver = Saver(self.run, identity, keep, merge_states, on_gpu=on_gpu, patient=patient)

    # Optimization

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices, stacked or not; the constants v of Eq. 5 are vectors however they are stacked."""
        return [n for n, p in model.named_parameters() if p.dim() >= 2 and not n.endswith("zero_computation.constant")]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Linear warm-up, then a cosine to the final rate at the last step."""
        if self.lr_scheduler is None:
            o = self.optimization
            target = cast(torch.optim.Optimizer, optimizer or self.optimizer)
            self.lr_scheduler = LambdaLR(
                target, lambda step: learning_rate(o, step, num_training_steps) / o.learning_rate
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # One step

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.loader

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; a step begins with fetching its samples."""
        self.clock.start()
        self.global_counts.reset()
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Trainer's, keeping the batches in case that their loss is not finite."""
        self._batches.append(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = self._step_loss + loss
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Trainer's, collecting the routing on the way."""
        inputs = inputs | {"global_counts": self.global_counts}
        result: Any = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss, outputs = result
        if model.training:
            share = 1 / (self.current_gradient_accumulation_steps * self.layout.world_size)
            self.window.add(outputs["lm_loss"], outputs["layer_balance_loss"], share, outputs["routing_stats"])
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Trainer's; a loss or norm that is not finite ends the run before the optimizer can spoil the weights."""
        norm: Any = super()._get_grad_norm(model, grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        (loss,) = total([torch.as_tensor(self._step_loss)])  # all processes stop, or none
        if not (math.isfinite(norm) and math.isfinite(loss)):
            raise self._diverged(self.state.global_step + 1)
        self._batches.clear()
        self._step_loss = 0.0
        self.window.steps += 1
        return norm

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with the window's metrics beside its loss."""
        if "loss" in logs and self.window.stats:
            kept_by_rank = self.window.gather()
            logs |= self.window.metrics(self.moe.layout(), self.clock.take())
            if self.layout.world_size > 1:
                logs["rank_imbalance"] = rank_imbalance(kept_by_rank, self.moe.num_ffn_experts, self.layout.ep_size)
            # A router that warms up is off by nature.
            if self.layout.first and self.state.global_step > self.optimization.warmup_steps:
                self.alerts.check(self.state.global_step, self.window.stats)
            self.window = Window()
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss (nats per token, without the balance loss) and bits per byte on each source, and over the mixture."""
        cast(nn.Module, self.model).eval()
        metrics: dict[str, float] = {}
        loss = bytes_ = 0.0
        whole = sum(self.weights[name] for name in self.validation)  # a source may hold nothing out
        for name, data in self.validation.items():
            nats = mean_loss(data, self._validation_batch, batch_size=self.args.eval_batch_size, layout=self.layout)
            metrics[f"{metric_key_prefix}_{name}_loss"] = nats
            metrics[f"{metric_key_prefix}_{name}_bits_per_byte"] = nats / math.log(2) / data.bytes_per_token
            loss += self.weights[name] / whole * nats
            bytes_ += self.weights[name] / whole * data.bytes_per_token
        reshard(cast(nn.Module, self.model))
        metrics[f"{metric_key_prefix}_loss"] = loss
        metrics[f"{metric_key_prefix}_bits_per_byte"] = loss / math.log(2) / bytes_
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _validation_batch(self, batch: dict[str, Tensor]) -> Tensor:
        loss, _, _ = self.prediction_step(cast(nn.Module, self.model), batch, True)
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        return loss

    def last_validation(self) -> dict[str, float]:
        """The metrics that :meth:`evaluate` logged last; empty without validation data."""
        logged = [entry for entry in self.state.log_history if "eval_loss" in entry]
        return {k: v for k, v in logged[-1].items() if k.startswith("eval_")} if logged else {}

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The language-modelling loss alone: the balance loss says nothing about text."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return model(**inputs)["lm_loss"].detach(), None, None

    # Checkpoints

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; however training ends, the save that was begun is on the disk before it does."""
        try:
            result = super().train(*args, **kwargs)
        except BaseException:
            with suppress(DataError, RuntimeError):  # the first error is the one to tell
                self.saver.wait()
            raise
        self.saver.wait()
        return result

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.saver.check()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Begins to save; :class:`moepp.train.saver.Saver` says how it ends."""
        self.require_finite_weights()
        self.store_flos()
        seconds = self.saver.save(self._snapshot)
        self.log({"checkpoint_seconds": seconds})
        if self.control.should_training_stop:  # there is nothing to do meanwhile
            self.saver.wait()

    def _snapshot(self) -> Snapshot:
        data = self.train_dataset
        micro_batches = self.state.global_step * self.args.gradient_accumulation_steps * self.layout.world_size
        return Snapshot(
            self.state.global_step,
            dcp.state_of(cast(nn.Module, self.model), cast(torch.optim.Optimizer, self.optimizer)),
            rng.states(),
            data.state_dict(micro_batches * self._train_batch_size) if isinstance(data, StreamingData) else None,
            self._small_files(),
        )

    def _small_files(self) -> Callable[[Path], None]:
        exported = [*self.callback_handler.callbacks, self.control]
        kept: dict[str, Any] = self.state.stateful_callbacks  # pyright: ignore[reportAssignmentType]
        for item in (item for item in exported if isinstance(item, ExportableState)):
            name = type(item).__name__
            kept[name] = [*kept[name], item.state()] if isinstance(kept[name], list) else item.state()
        texts = {
            TRAINER_STATE_NAME: json.dumps(dataclasses.asdict(self.state), indent=2, sort_keys=True) + "\n",
            SCHEDULE_FILE: json.dumps(cast(LambdaLR, self.lr_scheduler).state_dict()),
        }
        model = cast(MoEPPForCausalLM, self.model)

        def write(folder: Path) -> None:
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
            for name in self.carried:
                shutil.copyfile(self.run / name, folder / name)
            save_configuration(model, folder)

        return write

    def require_finite_weights(self) -> None:
        """Raises :class:`TrainingDiverged` for weights that the last update overflowed: they are not worth saving."""
        if bad_weights(cast(nn.Module, self.model)):
            raise self._diverged(self.state.global_step)

    def _diverged(self, step: int) -> TrainingDiverged:
        return diagnose(cast(nn.Module, self.model), self._batches, step, self.run)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        dcp.load_model(cast(nn.Module, self.model), Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Rates, betas and decay stay the recipe's, which may ask for others than before."""
        if checkpoint is None:
            return
        optimizer, scheduler = cast(torch.optim.Optimizer, self.optimizer), cast(LambdaLR, self.lr_scheduler)
        dcp.load_optimizer(cast(nn.Module, self.model), optimizer, Path(checkpoint))
        base = scheduler.base_lrs
        scheduler.load_state_dict(json.loads((Path(checkpoint) / SCHEDULE_FILE).read_text(encoding="utf-8")))
        scheduler.base_lrs = base
        rates = [rate * factor(scheduler.last_epoch) for rate, factor in zip(base, scheduler.lr_lambdas, strict=True)]
        scheduler._last_lr = rates  # what is logged
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = torch.load(Path(checkpoint) / RNG_FILE, weights_only=True)
        rng.resume(saved, self.layout.rank, self.layout.world_size, seed=self.args.seed, step=self.state.global_step)


def learning_rate(o: Optimization, step: int, total: int) -> float:
    """The rate of the step after ``step`` finished ones, of ``total``."""
    if step < o.warmup_steps:
        return o.warmup_start + (o.learning_rate - o.warmup_start) * step / o.warmup_steps
    progress = min(1.0, (step - o.warmup_steps) / max(1, total - 1 - o.warmup_steps))
    return o.final_learning_rate + (o.learning_rate - o.final_learning_rate) * (1 + math.cos(math.pi * progress)) / 2
