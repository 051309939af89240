"""What the Trainer is told, and how many examples it works on at once: fewer where memory is too small."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from workbench.checks import one_of
from workbench.healing.config import SCHEDULES, HealingConfig
from workbench.healing.launch import sharded
from workbench.models.processes import without_leftovers
from workbench.places import toml_beside

_ALWAYS = toml_beside(__file__, "trainer")


def training_arguments(
    config: HealingConfig,
    places: int,
    folder: Path,
    model: Any,
    report_to: str | Sequence[str] = (),
    *,
    longest: int = 2048,
) -> TrainingArguments:
    """Return the Trainer's arguments for a training of so many places.

    Args:
        config: how the adapter is trained.
        places: samples over the whole training.
        folder: of the checkpoints.
        model: that is trained.
        report_to: trackers, or one.
        longest: tokens of the longest sample.

    Raises:
        ValueError: when the processes and micro-batches do not make up ``batch_size``, the warm-up is as long
            as the training, or a tracker is not installed.
    """
    steps = -(-places // config.batch_size)
    warmup = config.warmup(steps)
    trackers = [report_to] if isinstance(report_to, str) else list(report_to)
    for name in trackers:
        one_of(name, get_available_reporting_integrations(), "report_to (of the trackers that are installed)")
    cuda = sharded() or next(model.parameters()).is_cuda  # FSDP takes weights from main memory onto the GPUs
    same = ("learning_rate", "weight_decay", "max_grad_norm", "seed")
    with without_leftovers():
        arguments = TrainingArguments(
            output_dir=str(folder),
            **_ALWAYS,
            **{name: getattr(config, name) for name in same},
            max_steps=steps,
            warmup_steps=warmup,
            lr_scheduler_type=SCHEDULES[config.schedule],
            optim="adamw_torch_fused" if cuda else "adamw_torch",
            bf16=model.dtype == torch.bfloat16,
            full_determinism=config.deterministic,
            use_cpu=not cuda,
            dataloader_pin_memory=cuda,
            # a blocking copy would wait for the whole step before it
            accelerator_config={"non_blocking": cuda},
            save_steps=config.save_steps or -(-steps // 10),
            report_to=trackers,
        )
        processes = arguments.world_size
    # several GPUs and no launcher: the Trainer would split batches over them by threads (DataParallel)
    arguments._n_gpu = min(arguments._n_gpu, 1)
    least = config.micro_batch_size or 1
    if config.batch_size % (least * processes):
        parts = f"{least} (micro_batch_size) x {processes} (processes)"
        raise ValueError(f"batch_size must be a multiple of {parts}, got {config.batch_size}")
    most = config.micro_batch_size or (max(1, tokens_at_once(model) // longest) if cuda else 16)
    set_micro_batch(arguments, most, config.batch_size // processes)
    return arguments


def tokens_at_once(model: Any) -> int:
    """Return how many tokens a GPU keeps the states of for the backward pass in half of its free memory.

    Per layer and token about nine times the width and four and a half times the inner width, as counted on an
    H200 (Llama-3.1-8B: 6 and 3 with compiled layers).
    """
    parameter = next(model.parameters())
    if not parameter.is_cuda:
        return 2048 * 16  # weights that FSDP spreads over GPUs, of which this process knows nothing yet
    text = model.config.get_text_config(decoder=True)
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    free = torch.cuda.mem_get_info(parameter.device)[0]
    free += torch.cuda.memory_reserved(parameter.device) - torch.cuda.memory_allocated(parameter.device)
    kept = text.num_hidden_layers * (9 * text.hidden_size + 9 * wide // 2) * 2
    return int(free // 2 // kept)


def set_micro_batch(arguments: TrainingArguments, most: int, share: int) -> None:
    """Let a process work on as many samples at once, up to ``most``, as divide its share of an update."""
    micro = max(k for k in range(1, min(most, share) + 1) if share % k == 0)
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
        set_micro_batch(arguments, micro // 2, batch_size)
        now = f"micro_batch_size={arguments.per_device_train_batch_size}, and batch_size stays {batch_size}"
        warnings.warn(f"out of memory with {micro} examples at a time: now with {now}", stacklevel=3)
        gc.collect()
        torch.cuda.empty_cache()


def _check_can_shrink(arguments: TrainingArguments, error: BaseException) -> None:
    micro, processes = arguments.per_device_train_batch_size, arguments.world_size
    ways = "gradient_checkpointing=True, a smaller max_length, or a model loaded with quantization='nf4'"
    if processes > 1:
        less = f"micro_batch_size={max(1, micro // 2)}"
        raise ValueError(f"out of memory in one of {processes} processes; give {less}, {ways}") from error
    if micro == 1:
        raise ValueError(f"out of memory with one example at a time; try {ways}") from error
