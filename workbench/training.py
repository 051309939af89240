"""What healing trains on and the loop that does it: exact masks, batches planned by the seed, the Trainer.

Everything that decides the order of the work is planned before the first step, so a run that was killed
goes on with the same batches and ends with the same weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from workbench.data import user_message
from workbench.generation import chat_prompt, end_tokens, token_ids

__all__ = [
    "LOG_COLUMNS",
    "Sample",
    "collate",
    "last_checkpoint",
    "planned_order",
    "read_samples",
    "run_training",
    "text_samples",
]

LOG_COLUMNS = ["step", "epoch", "loss", "learning_rate", "tokens", "seconds"]
IGNORED = -100
#: batches whose examples are sorted by length together: little padding, and the order still random
POOL = 32


@dataclass(frozen=True)
class Sample:
    """One sequence to train on.

    Attributes:
        ids: prompt, response and end mark as tokens.
        n_prompt: how many tokens at the beginning are read but not learned, at least 1.
    """

    ids: list[int]
    n_prompt: int

    @property
    def learned(self) -> int:
        """How many tokens count in the loss."""
        return len(self.ids) - self.n_prompt


def read_samples(
    model: Any, tokenizer: Any, examples: pd.DataFrame, response: str, max_length: int
) -> tuple[list[Sample], dict[str, int]]:
    """Turn examples into sequences whose response (and end mark) alone is learned.

    The prompt is tokenised by itself, just as generation does, so the boundary is exact.

    Args:
        model: whose end marks close a response.
        tokenizer: its tokenizer.
        examples: frame with instruction, the ``response`` column, and maybe context.
        response: the column to learn.
        max_length: tokens of a sequence at most; a longer response is cut.

    Returns:
        The samples, and how many responses were cut (``cut``) and rows left out (``left_out``) because
        their prompt alone fills ``max_length``.

    Raises:
        ValueError: for missing columns, an empty response, or no prompt that fits.
    """
    rows = _checked_rows(examples, response)
    messages = [user_message(row["instruction"], row.get("context") or "") for row in rows]
    prompts = token_ids(tokenizer, [chat_prompt(tokenizer, message) for message in messages])
    end = _end_of_turn(tokenizer, end_tokens(model, tokenizer))
    samples = []
    cut = 0
    for prompt, row in zip(prompts, rows, strict=True):
        learned = tokenizer(row[response], add_special_tokens=False)["input_ids"] + end
        if len(prompt) < max_length:
            cut += len(prompt) + len(learned) > max_length
            samples.append(Sample((prompt + learned)[:max_length], len(prompt)))
    if not samples:
        raise ValueError(
            f"no prompt fits max_length={max_length}: the shortest has {min(map(len, prompts))} tokens and "
            "needs one more at least for its response; raise max_length or take shorter examples"
        )
    return samples, {"cut": cut, "left_out": len(rows) - len(samples)}


def text_samples(
    tokenizer: Any, texts: Sequence[str], max_length: int
) -> tuple[list[Sample], dict[str, int]]:
    """Turn plain texts into sequences learned whole (GRO B.1: truncated, special tokens when available)."""
    samples = []
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"examples must be texts that are not empty; number {index} is {text!r}")
        ids = tokenizer(text)["input_ids"]
        if len(ids) > 1:
            samples.append(Sample(ids[:max_length], 1))
    if not samples:
        raise ValueError(
            f"examples must hold texts of at least 2 tokens, got {len(texts)} texts and none such"
        )
    long = sum(len(sample.ids) == max_length for sample in samples)
    return samples, {"cut": long, "left_out": len(texts) - len(samples)}


def planned_order(lengths: Sequence[int], total: int, batch_size: int, seed: int) -> list[int]:
    """Return which sample to take at each place of the whole training, batch after batch.

    Every sample comes once before any comes again. Batches hold samples of like length, longest first.

    Args:
        lengths: tokens of each sample.
        total: places to fill, over all epochs.
        batch_size: samples an update.
        seed: of the order.
    """
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(len(lengths)) for _ in range(math.ceil(total / len(lengths)))]
    order = np.concatenate(rounds)[:total]
    planned: list[int] = []
    for first in range(0, total, POOL * batch_size):
        pool = sorted(order[first : first + POOL * batch_size], key=lambda k: -lengths[k])
        batches = [pool[k : k + batch_size] for k in range(0, len(pool), batch_size)]
        whole = [batch for batch in batches if len(batch) == batch_size]
        for k in rng.permutation(len(whole)):
            planned += whole[k]
        planned += [k for batch in batches if len(batch) < batch_size for k in batch]
    return [int(k) for k in planned]


def collate(rows: list[tuple[Sample, float]]) -> dict[str, torch.Tensor]:
    """Make one batch: padded on the right, logits asked for at the learned positions only.

    No attention mask: a causal model never looks ahead to the padding, and without one attention takes its
    fast path.

    Returns:
        ``input_ids`` [row, token]; ``logits_to_keep`` [kept], the positions whose logits are needed by any
        row; ``targets`` [row, kept], the next token there or -100; ``weight``, what the summed loss is
        multiplied by.
    """
    samples = [sample for sample, _ in rows]
    width = max(len(sample.ids) for sample in samples)
    first = min(sample.n_prompt for sample in samples) - 1
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    targets = torch.full((len(samples), width - 1 - first), IGNORED)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        learned = slice(sample.n_prompt - 1 - first, len(sample.ids) - 1 - first)
        targets[row, learned] = torch.tensor(sample.ids[sample.n_prompt :])
    return {
        "input_ids": ids,
        "logits_to_keep": torch.arange(first, width - 1),
        "targets": targets,
        "weight": torch.tensor(rows[0][1]),
    }


def run_training(
    model: Any,
    samples: list[Sample],
    order: list[int],
    batch_size: int,
    arguments: TrainingArguments,
    on_step: Callable[[dict[str, Any]], None],
) -> pd.DataFrame:
    """Train the parameters that ask for it, going on from the last whole checkpoint if there is one.

    Args:
        model: with an adapter whose parameters require gradients.
        samples: what there is to learn.
        order: of ``planned_order``.
        batch_size: samples an update.
        arguments: of the Trainer.
        on_step: called after every update with its row of the log.

    Returns:
        Frame with ``LOG_COLUMNS``, one row an update: loss is the mean over the learned tokens of the
        update, tokens and seconds count from the beginning of the training.

    Raises:
        ValueError: when loss or gradient is no longer a number; says the step and where the last checkpoint
            is.
    """
    trainer = _ResponseTrainer(model, arguments, _Plan(samples, order, batch_size), on_step)
    trainer.train(resume_from_checkpoint=last_checkpoint(str(arguments.output_dir)))
    history = [row for row in trainer.state.log_history if "loss" in row]
    return pd.DataFrame(history)[LOG_COLUMNS]


def last_checkpoint(folder: str | Path) -> str | None:
    """Return the newest checkpoint in a folder that was written to its end, None when there is none."""
    found = [path for path in Path(folder).glob("checkpoint-*") if _is_whole(path)]
    newest = max(found, key=lambda path: int(path.name.split("-")[1]), default=None)
    return None if newest is None else str(newest)


class _Plan(Dataset):
    """The samples in the order of the training, each with the weight of its update."""

    def __init__(self, samples: list[Sample], order: list[int], batch_size: int) -> None:
        self.samples, self.order, self.batch_size = samples, order, batch_size
        lengths = np.array([len(samples[k].ids) for k in order])
        learned = np.array([samples[k].learned for k in order])
        starts = range(0, len(order), batch_size)
        self.weights = 1.0 / np.add.reduceat(learned, starts)
        self.tokens = np.cumsum(np.add.reduceat(lengths, starts))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[Sample, float]:
        return self.samples[self.order[place]], float(self.weights[place // self.batch_size])


class _ResponseTrainer(Trainer):
    """The Trainer with our order and loss, a log of every step, and a stop at the first loss that is none."""

    def __init__(
        self, model: Any, arguments: TrainingArguments, plan: _Plan, on_step: Callable[[dict[str, Any]], None]
    ) -> None:
        # compute_loss_func only tells the Trainer that the loss is already scaled for accumulation (any
        # version)
        super().__init__(
            model, arguments, collate, plan, compute_loss_func=lambda *_, **__: None, callbacks=None
        )
        self.remove_callback(PrinterCallback)
        self.plan, self.on_step = plan, on_step
        self.started = time.perf_counter()
        self.before: float | None = None

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.plan)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        inputs = dict(inputs)
        targets, weight = inputs.pop("targets"), inputs.pop("weight")
        if _wants_token_types(model):
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        logits = model(**inputs, use_cache=False).logits
        loss = cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        # the mean over the learned tokens of the whole update; processes average their gradients, hence
        # times them
        return loss * weight * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._stop_at_no_number(logs)
            step = self.state.global_step
            if self.before is None:
                past = [row["seconds"] for row in self.state.log_history if "seconds" in row]
                self.before = past[-1] if past else 0.0
            logs["tokens"] = int(self.plan.tokens[step - 1])
            logs["seconds"] = self.before + time.perf_counter() - self.started
        super().log(logs, start_time)
        if "loss" in logs:
            row = self.state.log_history[-1]
            seen = min(row["step"] * self.plan.batch_size, len(self.plan))
            row["epoch"] = seen / len(self.plan.samples)
            self.on_step({column: row[column] for column in LOG_COLUMNS})

    def _stop_at_no_number(self, logs: dict[str, float]) -> None:
        wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(logs.get(name, 0.0))]
        if wrong:
            checkpoint = last_checkpoint(str(self.args.output_dir)) or "none was written yet"
            step, steps, rate = self.state.global_step, self.state.max_steps, self.args.learning_rate
            raise ValueError(
                f"{wrong[0]} is {logs[wrong[0]]} at step {step} of {steps}, so training stopped; last good "
                f"checkpoint: {checkpoint}. Lower learning_rate (it is {rate}) or warm up longer, and heal "
                "again with overwrite=True"
            )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # save_embedding_layers: the default asks the hub whether the vocabulary changed
        folder = output_dir or str(self.args.output_dir)
        self.model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)  # type: ignore


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the Trainer's state is its last file."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def _wants_token_types(model: Any) -> bool:
    # Gemma 3 with vision refuses to train without them; elsewhere (GPT-2) they would be added to the
    # embedding
    return model.config.model_type == "gemma3" and hasattr(model.config, "vision_config")


def _checked_rows(examples: pd.DataFrame, response: str) -> list[dict[str, Any]]:
    missing = [column for column in ("instruction", response) if column not in examples]
    if missing or examples.empty:
        what = f"it has {', '.join(map(str, examples.columns))}" if missing else "it has no row"
        raise ValueError(
            f"examples must have columns instruction and {response}, and at least one row; {what}"
        )
    rows = examples.astype(object).where(examples.notna(), None).to_dict("records")
    empty = [row.get("id", k) for k, row in enumerate(rows) if not str(row[response] or "").strip()]
    if empty:
        raise ValueError(f"column {response} must hold a text in every row; row {empty[0]!r} has none")
    return rows


def _end_of_turn(tokenizer: Any, ends: list[int]) -> list[int]:
    """Return the tokens that close a response: what the chat template writes, up to its first end mark."""
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not getattr(tokenizer, "chat_template", None):
        return own
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "the reply"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False)
    tail = tokenizer(text.rpartition("the reply")[2], add_special_tokens=False)["input_ids"]
    place = next((k for k, token in enumerate(tail) if token in ends), None)
    return own if place is None else tail[: place + 1]
