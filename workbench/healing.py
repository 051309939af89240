"""Healing: win back what a cut cost by training a LoRA adapter on what is left (SDD A.5, GRO B.1)."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import TrainingArguments

from workbench.adapters import (
    RECORD,
    as_variant,
    lora_targets,
    merge_adapter_,
    new_adapter,
    quiet,
    with_adapter,
)
from workbench.files import atomic_folder, write_text_atomic
from workbench.generation import context_length
from workbench.models import describe_model, kept_layers
from workbench.recipes import SCHEDULES, HealingConfig
from workbench.training import (
    Sample,
    last_checkpoint,
    planned_order,
    read_samples,
    run_training,
    text_samples,
)

__all__ = ["Healed", "HealingConfig", "as_variant", "heal", "merge_adapter_", "with_adapter"]

LOG = "log.jsonl"


class Healed(NamedTuple):
    """What healing made.

    Attributes:
        adapter: the folder of the adapter, for ``with_adapter``.
        log: frame with step, epoch, loss (mean over the learned tokens), learning_rate, tokens and seconds
            since the beginning, one row an update.
    """

    adapter: Path
    log: pd.DataFrame


def heal(
    model: Any,
    tokenizer: Any,
    examples: pd.DataFrame | Sequence[str],
    *,
    response: str = "reference",
    config: HealingConfig | None = None,
    out: str | Path,
    overwrite: bool = False,
    progress: bool | Callable[[dict[str, Any]], None] = True,
) -> Healed:
    """Train a LoRA adapter on the model as it stands, and leave the model as it was, bit by bit.

    SFT and self-data distillation are the same call on the same rows: ``response="reference"`` or
    ``"response"``. Loss counts on the response and its end mark only; plain texts (GRO heals on C4) count
    whole.

    Args:
        model: the pruned model, or the whole one inside ``without_layers``.
        tokenizer: its tokenizer.
        examples: frame with instruction, context and the response column, or a list of texts.
        response: the column to learn: the set's own ``reference`` (SFT), or the ``response`` of
            ``self_distill``.
        config: None for ``HealingConfig.preset("sdd")``.
        out: folder of the adapter. A training that was killed goes on from its last checkpoint (beside it, in
            ``<out>.unfinished``) and ends with the same adapter; one that is done is not done again.
        overwrite: begin again when ``out`` was trained from another model, data or config.
        progress: show a progress bar; or a function called with each row of the log.

    Returns:
        The adapter's folder and the log. ``log.attrs`` says how many responses were cut or left out for
        length.

    Raises:
        ValueError: for bad examples, a model with an adapter on, an ``out`` of other work, a loss that is
            not a number (the last good checkpoint is kept).
    """
    config = config or HealingConfig.preset("sdd")
    out = Path(out)
    limit = min(config.max_length or 2048, context_length(model) or 2**31)
    samples, counts = _samples(model, tokenizer, examples, response, limit)
    plan = {
        "model": describe_model(model),
        "data": _digest(samples),
        "config": asdict(replace(config, save_steps=None)),
    }
    unfinished = out.with_name(f"{out.name}.unfinished")
    if _is_done(out, RECORD, plan, overwrite):
        return Healed(out, _read_log(out))
    begun = last_checkpoint(unfinished / "checkpoints") is not None
    if not begun or not _is_done(unfinished, "plan.json", plan, overwrite):
        shutil.rmtree(unfinished, ignore_errors=True)
    order = _order(samples, config)
    arguments = _arguments(config, len(order), unfinished / "checkpoints", model)
    lora = _lora(model, config)
    with (
        quiet(),
        _same_randomness(model.device),
        _checkpointing(model, config),
        new_adapter(model, lora, config.seed) as peft,
    ):
        write_text_atomic(unfinished / "plan.json", json.dumps(plan, indent=1))
        with _reported(progress, arguments.max_steps) as on_step:
            log = run_training(peft, samples, order, config.batch_size, arguments, on_step)
        if arguments.should_save:
            _store(out, peft, log, {**plan, "kept_layers": list(kept_layers(model)), **counts})
            shutil.rmtree(unfinished)
    log.attrs.update(counts)
    return Healed(out, log)


def _samples(
    model: Any, tokenizer: Any, examples: Any, response: str, limit: int
) -> tuple[list[Sample], dict[str, int]]:
    if isinstance(examples, pd.DataFrame):
        return read_samples(model, tokenizer, examples, response, limit)
    if isinstance(examples, str) or not isinstance(examples, Sequence) or not len(examples):
        raise ValueError(f"examples must be a frame or a list of at least one text, got {examples!r:.80}")
    return text_samples(tokenizer, examples, limit)


def _digest(samples: list[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(np.array([len(sample.ids), sample.n_prompt, *sample.ids], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _order(samples: list[Sample], config: HealingConfig) -> list[int]:
    total = config.max_steps * config.batch_size if config.max_steps else round(config.epochs * len(samples))
    lengths = [len(sample.ids) for sample in samples]
    return planned_order(lengths, max(total, 1), config.batch_size, config.seed)


def _lora(model: Any, config: HealingConfig) -> Any:
    from peft import LoraConfig

    found = lora_targets(model, config.targets)
    if found["target_parameters"] and config.dropout:
        raise ValueError(f"dropout must be 0 for a model whose experts are one tensor, got {config.dropout}")
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=found["target_modules"],
        target_parameters=found["target_parameters"] or None,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2
        task_type="CAUSAL_LM",
    )


def _arguments(config: HealingConfig, places: int, folder: Path, model: Any) -> TrainingArguments:
    steps = -(-places // config.batch_size)
    device = next(model.parameters()).device
    micro = config.micro_batch_size or max(k for k in range(1, 17) if config.batch_size % k == 0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=SCHEDULES[config.schedule],
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        bf16=device.type == "cuda" and model.dtype == torch.bfloat16,
        seed=config.seed,
        full_determinism=config.deterministic,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps or -(-steps // 10),
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["targets"],
    )
    # several GPUs and no launcher: the Trainer would split batches over them by threads (DataParallel)
    arguments._n_gpu = min(arguments._n_gpu, 1)
    together = micro * arguments.world_size
    if config.batch_size % together:
        raise ValueError(
            f"batch_size must be a multiple of micro-batch x processes = {together}, got {config.batch_size}"
        )
    arguments.gradient_accumulation_steps = config.batch_size // together
    return arguments


def _is_done(folder: Path, name: str, plan: dict[str, Any], overwrite: bool) -> bool:
    """Whether a folder holds this very work; an error when it holds other work, which must not be lost."""
    if not folder.exists():
        return False
    record = folder / name
    found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    differ = [key for key in plan if found.get(key) != json.loads(json.dumps(plan[key]))]
    if differ and not overwrite:
        raise ValueError(
            f"out: {folder} was trained from another {', another '.join(differ)}; give another out, or "
            "overwrite=True to begin it again"
        )
    return not differ


def _store(out: Path, peft: Any, log: pd.DataFrame, record: dict[str, Any]) -> None:
    with atomic_folder(out) as folder:
        # save_embedding_layers: the default asks the hub whether the vocabulary changed
        peft.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
        rows = "".join(json.dumps(row) + "\n" for row in log.to_dict("records"))
        (folder / LOG).write_text(rows, encoding="utf-8")
        (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _read_log(out: Path) -> pd.DataFrame:
    lines = (out / LOG).read_text(encoding="utf-8").splitlines()
    log = pd.DataFrame([json.loads(line) for line in lines])
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    log.attrs.update({key: record[key] for key in ("cut", "left_out")})
    return log


@contextmanager
def _reported(progress: bool | Callable[[dict[str, Any]], None], steps: int) -> Iterator[Callable]:
    """Give what is called after every update: moves a bar, or hands the row on."""
    with tqdm(total=steps, desc="heal", unit="step", disable=progress is not True) as bar:

        def on_step(row: dict[str, Any]) -> None:
            bar.update(row["step"] - bar.n)
            bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
            if callable(progress):
                progress(row)

        yield on_step


@contextmanager
def _same_randomness(device: torch.device) -> Iterator[None]:
    """Leave the random states and the choice of kernels as they were: the Trainer sets them all."""
    python, numpy, strict = (
        random.getstate(),
        np.random.get_state(),
        torch.are_deterministic_algorithms_enabled(),
    )
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.use_deterministic_algorithms(strict)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


@contextmanager
def _checkpointing(model: Any, config: HealingConfig) -> Iterator[None]:
    if not config.gradient_checkpointing:
        yield
        return
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
