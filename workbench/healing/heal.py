"""Healing: win back what a cut cost by training a LoRA adapter on what is left (SDD A.5, GRO B.1)."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from tqdm.auto import tqdm
from transformers import TrainingArguments

from workbench.healing.adapters import RECORD, deprecations_muted, lora_targets, new_adapter, read_record
from workbench.healing.config import HealingConfig
from workbench.healing.launch import sharded
from workbench.healing.losses import summing_loss
from workbench.healing.samples import OrderedSamples, check_packing, digest, read_examples, sequence_limit
from workbench.healing.trainer import OnStep, last_checkpoint, run_training, training_arguments, within_memory
from workbench.models.hooks import compiled_layers, compiling_pays
from workbench.models.identity import describe_model
from workbench.models.layers import kept_layers, unwrap
from workbench.runs.files import atomic_folder, write_text_atomic

#: beside an adapter, and beside the checkpoints of one that is not finished
LOG, WORK = "log.jsonl", "work.json"


class Healed(NamedTuple):
    """What healing made.

    Attributes:
        adapter: the folder of the adapter, for ``with_adapter``.
        log: frame with step, epoch, loss (mean over the learned tokens), learning_rate, tokens and seconds
            since the beginning, tokens_per_second of the update; one row an update.
    """

    adapter: Path
    log: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """Return ``log``: what a run keeps as the frame of this stage."""
        return self.log


def heal(
    model: Any,
    tokenizer: Any,
    examples: pd.DataFrame | Sequence[str],
    *,
    response: str = "reference",
    config: HealingConfig | None = None,
    out: str | Path,
    overwrite: bool = False,
    progress: bool | OnStep = True,
) -> Healed:
    """Train a LoRA adapter on the model as it stands, and leave the model as it was, bit by bit.

    SFT and self-data distillation are the same call on the same rows: ``response="reference"`` or
    ``"response"``. Loss counts on the response and its EOS only; plain texts (GRO heals on C4) count
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
        progress: show a progress bar; or a function called with each row of the log, and in it ``steps`` and
            ``seconds_left``.

    Returns:
        The adapter's folder and the log. ``log.attrs`` says how many responses were truncated (``cut``) or
        left out (``left_out``) for length.

    Raises:
        ValueError: for bad examples, a model with an adapter on, an ``out`` of other work, a loss that is
            not a number (the last good checkpoint is kept), no memory even for one example. Where the memory
            is too small for a micro-batch, healing goes on with half of it, with a warning.
        KeyboardInterrupt: when stopped: at the end of the update that runs a checkpoint is written, and the
            error names its folder, which ``with_adapter`` takes like a finished one.
    """
    config = config or HealingConfig.preset("sdd")
    out = Path(out)
    limit = sequence_limit(model, config.max_length)
    samples, counts = read_examples(model, tokenizer, examples, response, limit)
    work = {"model": describe_model(model), "data": digest(samples), "config": config.deciding()}
    if same_work(out / RECORD, work, overwrite):
        return Healed(out, _read_log(out))
    if config.packing:
        check_packing(model)
    unfinished = out.with_name(f"{out.name}.unfinished")
    begun = last_checkpoint(unfinished / "checkpoints") and same_work(unfinished / WORK, work, overwrite)
    ordered, lora = OrderedSamples(samples, config), _lora(model, config)
    arguments = training_arguments(config, len(ordered), unfinished / "checkpoints", model)
    if arguments.world_size > 1:
        ordered.fill_up(arguments.per_device_train_batch_size * arguments.world_size)
    _begin(unfinished, work, bool(begun), arguments)
    quantized = bool(getattr(unwrap(model), "is_quantized", False))
    record = {**work, "kept_layers": list(kept_layers(model)), "quantized": quantized, **counts}
    train = partial(_train, model, lora, ordered, config, arguments, progress, record)
    checkpointing = _checkpointing(model) if config.gradient_checkpointing else nullcontext()
    with deprecations_muted(), _same_randomness(model.device), checkpointing:
        log = within_memory(train, arguments)
    with arguments.main_process_first(local=False):
        if arguments.should_save:
            _store(out, unfinished / "checkpoints", log, record)
            shutil.rmtree(unfinished)
    log.attrs.update(counts)
    return Healed(out, log)


def same_work(record: Path, work: dict[str, Any], overwrite: bool) -> bool:
    """Return whether a folder's record tells of this very work, False where there is no folder.

    Args:
        record: the file in the folder.
        work: what decides the result, as plain values.
        overwrite: whether other work may be lost.

    Raises:
        ValueError: for other work that must not be lost; names what differs.
    """
    if not record.parent.exists():
        return False
    found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    differ = [key for key, value in json.loads(json.dumps(work)).items() if found.get(key) != value]
    if differ and not overwrite:
        raise ValueError(
            f"out: {record.parent} was made from another {', another '.join(differ)}; give another out, or "
            "overwrite=True to begin it again"
        )
    return not differ


def _train(
    model: Any,
    lora: Any,
    ordered: OrderedSamples,
    config: HealingConfig,
    arguments: TrainingArguments,
    progress: bool | OnStep,
    record: dict[str, Any],
) -> pd.DataFrame:
    """Train a fresh adapter from the last checkpoint or the beginning."""
    compiled = _compiles(model, int(ordered.tokens[-1]), config)
    even = ordered.is_even(arguments.per_device_train_batch_size * arguments.world_size)
    with (
        new_adapter(model, deepcopy(lora), config.seed) as peft,  # a copy: peft shortens its list of targets
        summing_loss(peft, chunk=config.loss_chunk, compiled=compiled),
        # mixed precision casts to bfloat16 what peft would first copy to the float32 of its own weights
        disable_input_dtype_casting(peft, active=arguments.bf16),
        compiled_layers(model, dynamic=not even) if compiled else nullcontext(),
        _reported(progress, arguments.max_steps) as on_step,
    ):
        return run_training(peft, ordered, arguments, on_step, partial(_write_record, record=record))


def _begin(unfinished: Path, work: dict[str, Any], begun: bool, arguments: TrainingArguments) -> None:
    """Make the folder of the unfinished work, by one process while the others wait."""
    with arguments.main_process_first(local=False):
        if arguments.should_save:
            if not begun:
                shutil.rmtree(unfinished, ignore_errors=True)
            write_text_atomic(unfinished / WORK, json.dumps(work, indent=1))


def _compiles(model: Any, n_tokens: int, config: HealingConfig) -> bool:
    if config.compiled is not None:
        return config.compiled
    # forward and backward: twice the work of a pass. On an H200 it took 17 s and made a step 1.38 x as fast
    return compiling_pays(model, 2 * n_tokens) and not sharded() and not config.deterministic


def _lora(model: Any, config: HealingConfig) -> Any:
    found = lora_targets(model, config.targets)
    if found["target_parameters"] and config.dropout:
        raise ValueError(f"dropout must be 0 for a model whose experts are one tensor, got {config.dropout}")
    alpha: Any = config.alpha or 2 * config.rank  # peft takes fractions too, its annotation does not
    return LoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        lora_dropout=config.dropout,
        **{name: names or None for name, names in found.items()},
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2
        task_type="CAUSAL_LM",
    )


def _store(out: Path, checkpoints: Path, log: pd.DataFrame, record: dict[str, Any]) -> None:
    """Keep the adapter of the last checkpoint, which was written after the last update, by any launcher."""
    last = last_checkpoint(checkpoints)
    assert last is not None and last.endswith(f"-{len(log)}")
    with atomic_folder(out) as folder:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copyfile(Path(last) / name, folder / name)
        rows = "".join(json.dumps(row) + "\n" for row in log.to_dict("records"))
        (folder / LOG).write_text(rows, encoding="utf-8")
        _write_record(folder, record)


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _read_log(out: Path) -> pd.DataFrame:
    lines = (out / LOG).read_text(encoding="utf-8").splitlines()
    log, record = pd.DataFrame(map(json.loads, lines)), read_record(out)
    log.attrs.update({key: record[key] for key in ("cut", "left_out")})
    return log


@contextmanager
def _reported(progress: bool | OnStep, steps: int) -> Iterator[OnStep]:
    """Give the function that is called after every update: it moves a bar, or passes the row on."""
    with tqdm(total=steps, desc="heal", unit="step", disable=progress is not True) as bar:

        def on_step(row: dict[str, Any]) -> None:
            bar.update(row["step"] - bar.n)
            shown = f"loss={row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s"
            bar.set_postfix_str(shown, refresh=False)
            if callable(progress):
                progress(row)

        yield on_step


@contextmanager
def _same_randomness(device: torch.device) -> Iterator[None]:
    """Leave the random states and the choice of kernels as they were: the Trainer sets them all."""
    cudnn: Any = torch.backends.cudnn
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        for name in ("deterministic", "benchmark"):
            stack.callback(setattr, cudnn, name, getattr(cudnn, name))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        yield


@contextmanager
def _checkpointing(model: Any) -> Iterator[None]:
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
