"""The training loop of healing: the Trainer with our order and loss, and a stop that loses nothing."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments

from workbench.healing.folders import STATE, last_checkpoint
from workbench.healing.losses import Objective
from workbench.healing.samples import OrderedSamples, collate
from workbench.healing.steps import FixedSteps, block_tokens, collate_blocks
from workbench.healing.validation import HELD_OUT, Validation, best_step

#: called after every update with its row of the log
OnStep = Callable[[dict[str, Any]], None]
#: and ``held_out_loss`` where held-out examples are given
LOG_COLUMNS = ["step", "epoch", "loss", "learning_rate", "tokens", "seconds", "tokens_per_second"]
_BEGINNING = {"step": 0, "tokens": 0, "seconds": 0.0}


class Diverged(ValueError):
    """Loss or gradient is not finite."""


@dataclass(frozen=True)
class Training:
    """What is learned, what is measured on the way, and who is told.

    Attributes:
        ordered: which samples, in which order.
        validation: held-out samples, and what follows from their loss.
        objective: what the model returns as its loss, and which parts of it are logged.
        on_step: called after every update with its row of the log, ``steps`` and ``seconds_left``.
        record: called with the folder of each checkpoint, to write beside the adapter what it fits.
    """

    ordered: OrderedSamples
    validation: Validation
    objective: Objective
    on_step: OnStep
    record: Callable[[Path], None]


def run_training(
    model: Any, training: Training, arguments: TrainingArguments, *, fixed: bool
) -> pd.DataFrame:
    """Train the parameters that ask for it, going on from the last whole checkpoint if there is one.

    Args:
        model: inside ``objective.acts``, with an adapter whose parameters require gradients.
        training: what is learned.
        arguments: of the Trainer.
        fixed: run each update, which is one batch, in blocks of fixed shape (``steps.FixedSteps``).

    Returns:
        Frame with ``LOG_COLUMNS`` and the parts of the loss, one row an update: loss is the mean over the
        learned tokens of the update, learning_rate the one that it was made with; tokens and seconds count
        from the beginning of the training to the moment when the device was done with the update,
        tokens_per_second is of the update alone; held_out_loss is missing (NaN) where it was not measured.

    Raises:
        Diverged: when loss or gradient is not finite; says the step and where the last checkpoint is.
        KeyboardInterrupt: when stopped, after writing a checkpoint; says where.
    """
    checkpoint = last_checkpoint(str(arguments.output_dir))
    history = [] if checkpoint is None else TrainerState.load_from_json(f"{checkpoint}/{STATE}").log_history
    if not training.validation.is_over(history):  # stopped early, and killed before it was stored
        trainer = _ResponseTrainer(training, model, arguments, FixedSteps(model) if fixed else None)
        try:
            with trainer.stopped_politely():
                trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            trainer.steps = None  # the memory of captured steps
        history = trainer.state.log_history
    columns = [*LOG_COLUMNS, *training.objective.names, *([HELD_OUT] if training.validation.samples else [])]
    return pd.DataFrame([row for row in history if "tokens_per_second" in row])[columns]


class _Update(NamedTuple):
    """Loss and gradient norm of an update; on a GPU they can be read once it has computed them."""

    step: int
    learning_rate: float
    values: torch.Tensor  # loss, norm of the gradient, parts of the loss; in main memory
    done: float | torch.cuda.Event  # seconds since the training began, or what tells on a GPU
    held_out: float | None = None


class _ResponseTrainer(Trainer):
    """The Trainer with our order, loss and log, and an error at the first loss that is not finite.

    On a GPU the numbers of an update are read while the next one runs: reading them at once would let the GPU
    wait for Python at every step.
    """

    def __init__(
        self, training: Training, model: Any, arguments: TrainingArguments, steps: FixedSteps | None
    ) -> None:
        self.ordered, self.steps = training.ordered, steps
        self.objective: Objective = training.objective
        self.validation, self.on_step, self.record = training.validation, training.on_step, training.record
        collator: Any = partial(collate, packed=self.ordered.config.packing, whole=self.ordered.whole)
        if steps is not None:
            collator = partial(collate_blocks, tokens=block_tokens(model))
        # compute_loss_func only tells the Trainer that the loss is already scaled for accumulation
        scaled: Any = {"compute_loss_func": lambda *_, **__: None}
        super().__init__(model, arguments, data_collator=collator, train_dataset=self.ordered, **scaled)
        self.remove_callback(PrinterCallback)
        if self.is_fsdp_enabled and self.args.bf16:
            # accelerate's own would also round the loss and sum gradients in bfloat16
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )
        self.started = time.perf_counter()
        self.before: dict[str, float] = {}  # the last row of calls before that were stopped
        self.pending: list[_Update] = []
        self.stop_asked = False

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **settings: Any) -> torch.Tensor:
        if self.steps is None:
            loss: torch.Tensor = super().training_step(model, inputs, *args, **settings)
            return loss
        inputs = self._prepare_inputs(inputs)
        if not model.training:
            model.train()
        return self.steps(model, inputs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        inputs = dict(inputs)
        # the mean over the learned tokens of the whole update; processes average their gradients, hence
        # times them
        weight = inputs.pop("weight") * self.accelerator.num_processes
        loss: torch.Tensor = model(**inputs) * weight
        self.objective.weigh(weight)
        return loss

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        step = self.state.global_step
        self.before = self.before or self._last_row()
        if step > (self.pending[-1].step if self.pending else self._last_row()["step"]):
            update = self._update(step, tr_loss, grad_norm, kwargs["learning_rate"])
            tr_loss.zero_()
            due = self.validation.is_due(step, self.state.max_steps, self.ordered)
            if due:
                seconds = self._seconds(update.done)
                update = update._replace(done=seconds, held_out=self._held_out_loss())
            self.pending.append(update)
            self._report_all(wait=due or self.control.should_save or step >= self.state.max_steps)
            if due:
                self._judge(step)
            if self.stop_asked:
                self.control.should_save = True
                self._report_all(wait=True)
        saves = self.control.should_save
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)
        if self.stop_asked and saves:
            raise KeyboardInterrupt(
                f"stopped after step {step} of {self.state.max_steps}; the same call goes on from there. The "
                f"adapter so far, for with_adapter: {last_checkpoint(str(self.args.output_dir))}"
            )

    def _held_out_loss(self) -> float:
        """Measure the held-out loss; every process measures all of it, so that all see the same number."""
        loss = self.validation.loss(self.model, self.args.per_device_train_batch_size)
        return float(self.accelerator.reduce(torch.tensor(loss, device=self.args.device), "mean"))

    def _judge(self, step: int) -> None:
        """Keep the adapter of an update that left the least held-out loss; stop when none does any more."""
        rows = self.state.log_history
        if self.validation.keep == "best" and best_step(rows) == step:
            self.state.best_global_step = step  # whose checkpoint the Trainer does not delete
            self.control.should_save = True
        if self.validation.is_over(rows):
            self.control.should_save = self.control.should_training_stop = True

    def _report_all(self, *, wait: bool) -> None:
        """Report every update, or on a GPU all but the one that may still run."""
        while self.pending and (wait or len(self.pending) > 1 or isinstance(self.pending[0].done, float)):
            self._report(self.pending.pop(0))

    def _update(self, step: int, loss: torch.Tensor, norm: Any, rate: float) -> _Update:
        norm = 0.0 if norm is None else getattr(norm, "full_tensor", lambda: norm)()
        values = torch.stack([loss, torch.as_tensor(norm).to(loss), *self.objective.take(loss)])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, "mean")
        if values.is_cuda:
            values = torch.empty(len(values), pin_memory=True).copy_(values, non_blocking=True)
        event = torch.cuda.current_stream(loss.device).record_event() if loss.is_cuda else None
        return _Update(step, rate, values, event or self._seconds())

    def _report(self, update: _Update) -> None:
        """Read an update, check that its numbers are finite, log its row and pass it on."""
        seconds = self._seconds(update.done)
        loss, norm, *parts = update.values.tolist()
        self._check_finite(update.step, loss=loss, grad_norm=norm, held_out_loss=update.held_out or 0.0)
        before, past = self.before, self._last_row()
        tokens = int(self.ordered.tokens[update.step - 1])
        row = {
            "step": update.step,
            "epoch": self.ordered.epoch(update.step),
            "loss": loss,
            "learning_rate": update.learning_rate,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": (tokens - past["tokens"]) / max(seconds - past["seconds"], 1e-9),
        } | dict(zip(self.objective.names, parts, strict=True))
        row |= {HELD_OUT: update.held_out} if self.validation.samples else {}
        self.state.log_history.append(row)
        self._tell_trackers(row)
        here = (tokens - before["tokens"]) / max(seconds - before["seconds"], 1e-9)
        left = (int(self.ordered.tokens[-1]) - tokens) / here
        try:
            self.on_step(row | {"steps": self.state.max_steps, "seconds_left": left})
        except KeyboardInterrupt:
            self.stop_asked = True

    def _seconds(self, done: float | torch.cuda.Event | None = None) -> float:
        """Return the seconds since the training began: now, or when the device was done with an update."""
        if isinstance(done, float):
            return done
        if done is not None:
            done.synchronize()
        return self.before["seconds"] + time.perf_counter() - self.started

    def _tell_trackers(self, row: dict[str, Any]) -> None:
        """Hand a row to the trackers of ``report_to``, under its own step."""
        if self.args.report_to:
            step, self.state.global_step = self.state.global_step, row["step"]
            numbers = {name: value for name, value in row.items() if name != "step" and value is not None}
            self.callback_handler.on_log(self.args, self.state, self.control, numbers)
            self.state.global_step = step

    def _last_row(self) -> dict[str, float]:
        """Return the last row of the log; at the beginning of a call, of calls before that were stopped."""
        return self.state.log_history[-1] if self.state.log_history else _BEGINNING

    def _check_finite(self, step: int, **values: float) -> None:
        if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
            checkpoint = last_checkpoint(str(self.args.output_dir)) or "none was written yet"
            steps, rate = self.state.max_steps, self.args.learning_rate
            raise Diverged(
                f"{wrong[0]} is {values[wrong[0]]} at step {step} of {steps}, so training stopped; last good "
                f"checkpoint: {checkpoint}. Lower learning_rate (it is {rate}) or warm up longer, and heal "
                "again with overwrite=True"
            )

    @contextmanager
    def stopped_politely(self) -> Iterator[None]:
        """Let the first Ctrl-C end the training after the step that runs; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread() or self.args.world_size > 1:
            yield
            return

        def ask(*_: Any) -> None:
            if self.stop_asked:
                raise KeyboardInterrupt
            self.stop_asked = True

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:  # FSDP asks every process
            return
        # save_embedding_layers: the default asks the hub whether the vocabulary changed
        folder = output_dir or str(self.args.output_dir)
        self.model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)  # type: ignore
        self.record(Path(folder))
