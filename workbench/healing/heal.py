"""Healing: win back what a cut cost by training a LoRA adapter on what is left (SDD A.5, GRO B.1)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from transformers import TrainingArguments

from workbench.bars import tqdm
from workbench.checks import check_writable
from workbench.healing import folders
from workbench.healing.adapters import lora_targets, new_adapter
from workbench.healing.arguments import set_micro_batch, training_arguments, within_memory
from workbench.healing.config import HealingConfig
from workbench.healing.fused import fused_layers
from workbench.healing.launch import is_main, sharded
from workbench.healing.losses import Objective
from workbench.healing.records import write_record
from workbench.healing.restoring import checkpointing, deprecations_muted, same_cache, same_randomness
from workbench.healing.samples import OrderedSamples, check_packing, digest, read_examples, sequence_limit
from workbench.healing.steps import captures
from workbench.healing.trainer import OnStep, Training, run_training
from workbench.healing.validation import HELD_OUT, Validation, check_asked, kept_step, read_held_out
from workbench.models.batches import check_known
from workbench.models.hooks import any_shape, compiled_layers, compiling_pays
from workbench.models.identity import describe_model, in_common
from workbench.models.layers import check_in_memory, kept_layers, unwrap
from workbench.models.processes import agree, place
from workbench.runs.files import check_room, locked, write_text_atomic


class Healed(NamedTuple):
    """What healing made.

    Attributes:
        adapter: the folder of the adapter, for ``with_adapter``.
        log: frame with step, epoch, loss (mean over the learned tokens), learning_rate, tokens and seconds
            since the beginning, tokens_per_second of the update, each term of an objective that has several,
            and where held-out examples are given held_out_loss (NaN where it was not measured); one row an
            update.
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
    held_out: pd.DataFrame | Sequence[str] | None = None,
    evaluate_every: int | None = None,
    keep: str = "last",
    patience: int | None = None,
    report_to: str | Sequence[str] = (),
    objective: Objective | None = None,
) -> Healed:
    """Train a LoRA adapter on the model as it stands, and leave the model as it was, bit by bit.

    SFT and self-data distillation are the same call on the same rows: ``response="reference"`` or
    ``"response"``; both see the rows in the same order. Loss counts on the response and its EOS only; plain
    texts (GRO heals on C4) count whole.

    Args:
        model: the pruned model, or the whole one inside ``without_layers``.
        tokenizer: its tokenizer.
        examples: frame with instruction, the response column, and where there are any context and history
            (earlier turns); or a list of texts, which are put one behind the other into full rows unless
            ``config.concatenate`` is False.
        response: the column to learn: the set's own ``reference`` (SFT), or the ``response`` of
            ``self_distill``.
        config: None for ``HealingConfig.preset("sdd")``.
        out: folder of the adapter. A training that was killed goes on from its last checkpoint (beside it, in
            ``<out>.unfinished``) and ends with the same adapter; one that is done is not done again, also
            where it was done in another type (bfloat16 on a GPU, read back in float32), with a warning.
        overwrite: begin again when ``out`` was trained from another model, data or config. A folder with
            files that ``heal`` did not write is never replaced.
        progress: show a progress bar; or a function called with each row of the log, and in it ``steps`` and
            ``seconds_left``.
        held_out: examples that are not learned, in the form of ``examples``: their loss is measured as the
            training goes (``held_out_loss`` in the log, nats a token).
        evaluate_every: updates between two measurements; None for one at the end of each epoch. The last
            update is measured in any case.
        keep: the adapter that comes out: ``"last"``, or ``"best"``, of the update with the least held-out
            loss.
        patience: stop after so many measurements without a new least held-out loss; None for never.
        report_to: trackers that get each row of the log: names that the Trainer knows, such as
            ``"tensorboard"`` or ``"wandb"``.
        objective: what is minimised; None for the loss on the learned tokens (``recover`` gives another).

    Returns:
        The adapter's folder and the log. ``log.attrs`` says how many responses were truncated (``cut``) or
        left out (``left_out``) for length, the model's type (``dtype``), and with ``held_out`` the update
        whose adapter was kept (``kept_step``).

    Raises:
        ValueError: for bad examples, a model with an adapter on, an ``out`` of other work or with other
            files, held-out examples that are all among those learned (some are a warning), a warm-up as long
            as the training, a loss that is not a number (the last good checkpoint is kept), no memory even
            for one example. Where the memory is too small for a micro-batch, healing goes on with half of it,
            with a warning.
        KeyboardInterrupt: when stopped: at the end of the update that runs a checkpoint is written, and the
            error names its folder, which ``with_adapter`` takes like a finished one.
    """
    config, objective = config or HealingConfig.preset("sdd"), objective or Objective()
    check_asked(held_out, evaluate_every, keep, patience)
    check_in_memory(model)
    out = folders.adapter_folder(out)
    limit = sequence_limit(model, config.max_length)
    reading: Any = {"response": response, "max_length": limit, "concatenate": config.concatenate}
    samples, counts = read_examples(model, tokenizer, examples, **reading)
    check_known(model, [sample.ids for sample in samples], "example")
    objective.check(samples, config)
    apart = read_held_out(model, tokenizer, examples, held_out, **reading)
    check_known(model, [sample.ids for sample in apart], "held-out example")
    validation = Validation(apart, evaluate_every, keep, patience)
    here = describe_model(model)
    work: dict[str, Any] = {"model": here, "data": digest(samples), "config": config.deciding()}
    work |= validation.settings() | objective.settings()
    if place()[1] > 1:
        agree(**{**work, **in_common(model, tokenizer), "config": "", **config.written()})
    with locked(out) if is_main() else nullcontext():  # a second one waits, and finds it done
        if folders.is_done(out, work, model, overwrite=overwrite):
            return Healed(out, _read_back(out, here["dtype"]))
        check_writable("out", out)
        ordered = OrderedSamples(samples, config, whole=objective.whole)
        lora, arguments, captured = _prepared(model, ordered, objective.capturable, out, report_to)
        _warn_of_cuts(counts, limit, len(examples))
        _begin(out, work, overwrite, arguments)
        quantized = bool(getattr(unwrap(model), "is_quantized", False))
        record = {**work, "values": folders.values_digest(model), "kept_layers": [*kept_layers(model)]}
        record |= {"quantized": quantized, **counts}
        with _reported(progress, arguments.max_steps) as on_step:
            noted = partial(write_record, record=record)
            training = Training(ordered, validation, objective, on_step, noted)
            log = within_memory(partial(_train, model, lora, training, arguments, captured), arguments)
        return _stored(out, log, record, validation, arguments)


def _read_back(out: Path, dtype: str) -> pd.DataFrame:
    """Return the log of a training that is done; say it where that was done in another type."""
    log = folders.read_log(out)
    if (trained := log.attrs["dtype"]) != dtype:
        words = f"{out} was trained in {trained}, the model is in {dtype}; it is taken as it is"
        warnings.warn(words, stacklevel=3)
    return log


def _prepared(
    model: Any, ordered: OrderedSamples, capturable: bool, out: Path, report_to: str | Sequence[str]
) -> tuple[LoraConfig, TrainingArguments, bool]:
    """Return what peft and the Trainer are told, and whether updates are captured; refuse what cannot be."""
    config = ordered.config
    if config.packing:
        check_packing(model)
    lora, lengths = lora_config(model, config), [len(sample.ids) for sample in ordered.samples]
    checkpoints = folders.unfinished_folder(out) / folders.CHECKPOINTS
    places = (config, len(ordered), checkpoints, model, report_to)
    arguments = training_arguments(*places, longest=max(lengths))
    captured = capturable and captures(model, config, lengths, processes=arguments.world_size)
    if captured:
        set_micro_batch(arguments, config.batch_size, config.batch_size)
    if arguments.world_size > 1:
        ordered.fill_up(arguments.per_device_train_batch_size * arguments.world_size)
    return lora, arguments, captured


def _warn_of_cuts(counts: dict[str, int], limit: int, rows: int) -> None:
    if any(counts.values()):
        cut = f"{counts['cut']} are cut at max_length={limit} tokens, so that their end is not learned"
        left = f"{counts['left_out']} are left out, as nothing to learn is left of them"
        warnings.warn(f"of {rows} examples {cut}, and {left}", stacklevel=3)


def _begin(out: Path, work: dict[str, Any], overwrite: bool, arguments: TrainingArguments) -> None:
    """Make the folder of the unfinished work, by one process while the others wait, or go on in it."""
    unfinished = folders.unfinished_folder(out)
    checkpoint = folders.last_checkpoint(unfinished / folders.CHECKPOINTS)
    begun = checkpoint and folders.same_work(unfinished / folders.WORK, work, overwrite)
    with arguments.main_process_first(local=False):
        if arguments.should_save:
            if not begun:
                folders.clear(unfinished)
            write_text_atomic(unfinished / folders.WORK, json.dumps(work, indent=1))


def _train(
    model: Any, lora: LoraConfig, training: Training, arguments: TrainingArguments, captured: bool
) -> pd.DataFrame:
    """Train a fresh adapter from the last checkpoint or the beginning."""
    ordered, objective, config = training.ordered, training.objective, training.ordered.config
    compiled = _compiles(model, int(ordered.tokens[-1]), config)
    even = ordered.is_even(arguments.per_device_train_batch_size * arguments.world_size)
    # an update that did not fit into memory at once goes in micro-batches
    fixed = captured and arguments.gradient_accumulation_steps == 1
    with (
        deprecations_muted(),
        same_randomness(model.device),
        same_cache(model),
        checkpointing(model) if config.gradient_checkpointing else nullcontext(),
        new_adapter(model, deepcopy(lora), config.seed) as peft,  # a copy: peft shortens its list of targets
        objective.acts(peft, chunk=config.loss_chunk, compiled=compiled, gaps=fixed),
        # mixed precision casts to bfloat16 what peft would first copy to the float32 of its own weights
        disable_input_dtype_casting(peft, active=arguments.bf16),
        nullcontext() if fixed or even else any_shape(),
        fused_layers(peft) if fixed and not compiled else nullcontext(),
        compiled_layers(model, dynamic=not fixed and not even) if compiled else nullcontext(),
    ):
        # each checkpoint holds the weights and AdamW's two moments of them; one is written before one goes
        trained = sum(p.numel() for p in peft.parameters() if p.requires_grad)
        check_room(str(arguments.output_dir), 24 * trained)
        objective.begin(peft)
        return run_training(peft, training, arguments, fixed=fixed)


def _stored(
    out: Path, log: pd.DataFrame, record: dict[str, Any], validation: Validation, arguments: TrainingArguments
) -> Healed:
    """Make the adapter's folder, by one process while the others wait."""
    if validation.samples:
        record["kept_step"] = kept_step(log, validation.keep)
    with arguments.main_process_first(local=False):
        if arguments.should_save:
            kept = Path(str(arguments.output_dir)) / f"checkpoint-{record.get('kept_step', len(log))}"
            folders.store(out, kept, log, record)
            folders.clear(folders.unfinished_folder(out))
    log.attrs.update(folders.log_attributes(record))
    return Healed(out, log)


def _compiles(model: Any, n_tokens: int, config: HealingConfig) -> bool:
    if config.compiled is not None:
        return config.compiled
    # forward and backward: twice the work of a pass. On an H200 it took 17 s and made a step 1.38 x as fast
    return compiling_pays(model, 2 * n_tokens) and not sharded() and not config.deterministic


def lora_config(model: Any, config: HealingConfig) -> Any:
    """Return the ``peft.LoraConfig`` of a training."""
    found = lora_targets(model, config.targets)
    for name in ("dropout", "dora"):
        if found["target_parameters"] and getattr(config, name):
            got = getattr(config, name)
            raise ValueError(f"{name} must be {type(got)()} where experts are one tensor, got {got}")
    alpha: Any = 2 * config.rank if config.alpha is None else float(config.alpha)  # other readers want an int
    return LoraConfig(
        r=config.rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=config.dropout,
        use_dora=config.dora,
        use_rslora=config.rslora,
        target_modules=found["target_modules"],
        target_parameters=found["target_parameters"] or None,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2
        task_type="CAUSAL_LM",
    )


@contextmanager
def _reported(progress: bool | OnStep, steps: int) -> Iterator[OnStep]:
    """Give the function that is called after every update: it moves a bar, or passes the row on."""
    with tqdm(total=steps, desc="heal", unit="step", disable=progress is not True) as bar:

        def on_step(row: dict[str, Any]) -> None:
            bar.update(row["step"] - bar.n)
            shown = f"loss={row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s"
            if row.get(HELD_OUT) is not None:
                shown = f"held_out={row[HELD_OUT]:.3f}, {shown}"
            bar.set_postfix_str(shown, refresh=False)
            if callable(progress):
                progress(row)

        yield on_step
