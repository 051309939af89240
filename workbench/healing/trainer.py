"""The training loop of healing: the Trainer with our order and loss, and a stop that loses nothing."""

from __future__ import annotations

import gc
import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PrinterCallback, Trainer, TrainingArguments

from workbench.healing.config import SCHEDULES, HealingConfig
from workbench.healing.launch import sharded
from workbench.healing.samples import OrderedSamples, collate

#: called after every update with its row of the log
OnStep = Callable[[dict[str, Any]], None]
#: called with the folder of each checkpoint
Record = Callable[[Path], None]
LOG_COLUMNS = ["step", "epoch", "loss", "learning_rate", "tokens", "seconds", "tokens_per_second"]
_BEGINNING = {"tokens": 0, "seconds": 0.0}


class Diverged(ValueError):
    """Loss or gradient is not finite."""


def run_training(
    model: Any, ordered: OrderedSamples, arguments: TrainingArguments, on_step: OnStep, record: Record
) -> pd.DataFrame:
    """Train the parameters that ask for it, going on from the last whole checkpoint if there is one.

    Args:
        model: inside ``summing_loss``, with an adapter whose parameters require gradients.
        ordered: which samples, in which order.
        arguments: of the Trainer.
        on_step: called after every update with its row of the log, ``steps`` and ``seconds_left``.
        record: called with the folder of each checkpoint, to write beside the adapter what it fits.

    Returns:
        Frame with ``LOG_COLUMNS``, one row an update: loss is the mean over the learned tokens of the
        update, tokens and seconds count from the beginning of the training, tokens_per_second is of the
        update alone.

    Raises:
        Diverged: when loss or gradient is not finite; says the step and where the last checkpoint is.
        KeyboardInterrupt: when stopped, after writing a checkpoint; says where.
    """
    trainer = _ResponseTrainer(ordered, on_step, record, model=model, args=arguments)
    with trainer.stopped_politely():
        trainer.train(resume_from_checkpoint=last_checkpoint(str(arguments.output_dir)))
    history = [row for row in trainer.state.log_history if "tokens_per_second" in row]
    return pd.DataFrame(history)[LOG_COLUMNS]


def training_arguments(config: HealingConfig, places: int, folder: Path, model: Any) -> TrainingArguments:
    """Return the Trainer's arguments for a training of so many places.

    Raises:
        ValueError: when the processes and micro-batches do not make up ``batch_size``.
    """
    steps = -(-places // config.batch_size)
    cuda = sharded() or next(model.parameters()).is_cuda  # FSDP takes weights from main memory onto the GPUs
    same = ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "seed")
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{name: getattr(config, name) for name in same},
        max_steps=steps,
        lr_scheduler_type=SCHEDULES[config.schedule],
        optim="adamw_torch_fused" if cuda else "adamw_torch",
        bf16=model.dtype == torch.bfloat16,
        full_determinism=config.deterministic,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        # a blocking copy would wait for the whole step before it
        accelerator_config={"non_blocking": cuda},
        logging_strategy="no",  # ours does not wait for the GPU
        logging_nan_inf_filter=False,
        save_steps=config.save_steps or -(-steps // 10),
        save_total_limit=2,
        train_sampling_strategy="sequential",  # the order is fixed already
        ddp_find_unused_parameters=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["targets"],
    )
    # several GPUs and no launcher: the Trainer would split batches over them by threads (DataParallel)
    arguments._n_gpu = min(arguments._n_gpu, 1)
    processes, least = arguments.world_size, config.micro_batch_size or 1
    if config.batch_size % (least * processes):
        raise ValueError(
            f"batch_size must be a multiple of micro-batch x processes = {least} x {processes}, "
            f"got {config.batch_size}"
        )
    _set_micro_batch(arguments, config.micro_batch_size or 16, config.batch_size // processes)
    return arguments


def _set_micro_batch(arguments: TrainingArguments, most: int, share: int) -> None:
    """Let a process work on as many samples at once, up to ``most``, as divide its share of an update."""
    micro = max(k for k in range(1, most + 1) if share % k == 0)
    arguments.per_device_train_batch_size = micro
    arguments.gradient_accumulation_steps = share // micro


def within_memory(train: Callable[[], pd.DataFrame], arguments: TrainingArguments) -> pd.DataFrame:
    """Train; where the memory is too small for a micro-batch, go on with half of it or a little less."""
    while True:
        micro = arguments.per_device_train_batch_size
        try:
            return train()
        except torch.OutOfMemoryError as error:
            _check_can_shrink(arguments, error)
        # outside the handler, whose error holds on to the memory
        batch_size = micro * arguments.gradient_accumulation_steps
        _set_micro_batch(arguments, micro // 2, batch_size)
        warnings.warn(
            f"out of memory with {micro} examples at a time: healing goes on with micro_batch_size="
            f"{arguments.per_device_train_batch_size}, and batch_size stays {batch_size}",
            stacklevel=3,
        )
        gc.collect()
        torch.cuda.empty_cache()


def _check_can_shrink(arguments: TrainingArguments, error: BaseException) -> None:
    micro, processes = arguments.per_device_train_batch_size, arguments.world_size
    ways = "gradient_checkpointing=True, a smaller max_length, or a model loaded with quantization='nf4'"
    if processes > 1:
        raise ValueError(
            f"out of memory with micro_batch_size={micro} in one of {processes} processes; give "
            f"micro_batch_size={max(1, micro // 2)}, {ways}"
        ) from error
    if micro == 1:
        raise ValueError(f"out of memory with one example at a time; try {ways}") from error


def last_checkpoint(folder: str | Path) -> str | None:
    """Return the newest checkpoint in a folder that was written to its end, None when there is none."""
    found = [path for path in Path(folder).glob("checkpoint-*") if _is_whole(path)]
    newest = max(found, key=lambda path: int(path.name.split("-")[1]), default=None)
    return None if newest is None else str(newest)


class _Update(NamedTuple):
    """Loss and gradient norm of an update; on a GPU they can be read once it has computed them."""

    step: int
    learning_rate: float
    values: torch.Tensor  # loss and norm of the gradient, in main memory
    copied: torch.cuda.Event | None


class _ResponseTrainer(Trainer):
    """The Trainer with our order, loss and log, and an error at the first loss that is not finite.

    On a GPU the numbers of an update are read while the next one runs: reading them at once would let the GPU
    wait for Python at every step.
    """

    def __init__(self, ordered: OrderedSamples, on_step: OnStep, record: Record, **options: Any) -> None:
        # compute_loss_func only tells the Trainer that the loss is already scaled for accumulation
        options |= {"train_dataset": ordered, "data_collator": partial(collate, packed=ordered.packed)}
        super().__init__(compute_loss_func=lambda *_, **__: None, **options)
        self.remove_callback(PrinterCallback)
        if self.is_fsdp_enabled and self.args.bf16:
            # accelerate's own would also round the loss and sum gradients in bfloat16
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )
        self.ordered, self.on_step, self.record = ordered, on_step, record
        self.started = time.perf_counter()
        self.before = _BEGINNING
        self.pending: list[_Update] = []
        self.last_seen: int | None = None
        self.stop_asked = False

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        if self.last_seen is None:
            self.last_seen, self.before = self.state.global_step, self._last_row()
        inputs = dict(inputs)
        weight = inputs.pop("weight")
        # the mean over the learned tokens of the whole update; processes average their gradients, hence
        # times them
        loss: torch.Tensor = model(**inputs) * weight * self.accelerator.num_processes
        return loss

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        step = self.state.global_step
        if self.last_seen is not None and step > self.last_seen:
            self.last_seen = step
            self.pending.append(self._update(step, tr_loss, grad_norm))
            tr_loss.zero_()
            self._report_all(wait=self.control.should_save or step >= self.state.max_steps)
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

    def _report_all(self, *, wait: bool) -> None:
        """Report every update, or on a GPU all but the one that may still run."""
        while self.pending and (wait or len(self.pending) > 1 or self.pending[0].copied is None):
            self._report(self.pending.pop(0))

    def _update(self, step: int, loss: torch.Tensor, norm: Any) -> _Update:
        norm = 0.0 if norm is None else getattr(norm, "full_tensor", lambda: norm)()
        values = torch.stack([loss, torch.as_tensor(norm).to(loss)])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, "mean")
        rate = self._get_learning_rate()
        if not values.is_cuda:
            return _Update(step, rate, values, None)
        copy = torch.empty(2, pin_memory=True).copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return _Update(step, rate, copy, event)

    def _report(self, update: _Update) -> None:
        """Read an update, check that its numbers are finite, log its row and pass it on."""
        if update.copied is not None:
            update.copied.synchronize()
        loss, norm = update.values.tolist()
        self._check_finite(update.step, loss=loss, grad_norm=norm)
        before, past = self.before, self._last_row()
        tokens = int(self.ordered.tokens[update.step - 1])
        seconds = before["seconds"] + time.perf_counter() - self.started
        row = {
            "step": update.step,
            "epoch": self.ordered.epoch(update.step),
            "loss": loss,
            "learning_rate": update.learning_rate,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": (tokens - past["tokens"]) / max(seconds - past["seconds"], 1e-9),
        }
        self.state.log_history.append(row)
        here = (tokens - before["tokens"]) / max(seconds - before["seconds"], 1e-9)
        left = (int(self.ordered.tokens[-1]) - tokens) / here
        try:
            self.on_step(row | {"steps": self.state.max_steps, "seconds_left": left})
        except KeyboardInterrupt:
            self.stop_asked = True

    def _last_row(self) -> dict[str, float]:
        """Return the last row of the log; at the beginning of a call, of those before that were stopped."""
        return self.state.log_history[-1] if self.state.log_history else _BEGINNING

    def _check_finite(self, step: int, **values: float) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
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


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the Trainer's state is its last file."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True
