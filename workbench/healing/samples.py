"""What healing trains on: exact masks, and batches that the seed fixes before the first step.

So a training that was killed goes on with the same batches and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from workbench.checks import checked, listed
from workbench.data.instructions import conversation, field_text
from workbench.generation.prompts import context_length, end_tokens
from workbench.healing.config import HealingConfig
from workbench.healing.order import training_order
from workbench.models.chat import chat_ids, render_chat, text_ids
from workbench.models.layers import unwrap
from workbench.models.probes import reads_apart


@dataclass(frozen=True)
class Sample:
    """One sequence to train on.

    Attributes:
        ids: prompt, response and EOS as tokens.
        n_prompt: how many tokens at the beginning are read but not learned, at least 1.
        size: what orders it: the tokens of its prompt and reference, whichever column is learned; so that
            SFT and self-distilled data of the same rows are seen in the same order.
    """

    ids: list[int]
    n_prompt: int
    size: int = 0

    @property
    def learned(self) -> int:
        """How many tokens count in the loss."""
        return len(self.ids) - self.n_prompt


def read_examples(
    model: Any, tokenizer: Any, examples: Any, response: str, max_length: int, *, concatenate: bool = False
) -> tuple[list[Sample], dict[str, int]]:
    """Return the samples of a frame (``read_samples``) or of a list of texts (``text_samples``)."""
    if isinstance(examples, pd.DataFrame):
        return read_samples(model, tokenizer, examples, response, max_length)
    return text_samples(tokenizer, listed(examples, "examples"), max_length, concatenate=concatenate)


def check_apart(examples: Any, held_out: Any) -> None:
    """Refuse held-out examples that are all among those learned; warn where some are.

    Rows are the same when they ask the same (instruction, context, earlier turns), whatever the response.

    Raises:
        ValueError: when no held-out example is apart.
    """
    learned = set(_asked(examples))
    held = _asked(held_out)
    both = sum(one in learned for one in held)
    words = f"held_out must hold other examples than those learned; {both} of {len(held)} are among them"
    if both == len(held):
        raise ValueError(words)
    if both:
        warnings.warn(f"{words}, and make the held-out loss too low", stacklevel=3)


def _asked(examples: Any) -> list[str]:
    if isinstance(examples, pd.DataFrame):
        return [json.dumps(conversation(row)) for row in examples.to_dict("records")]
    return [str(text).strip() for text in examples]


def sequence_limit(model: Any, max_length: int | None) -> int:
    """Return how many tokens of an example are read: ``max_length``, 2048 for None, within the context."""
    return min(max_length or 2048, context_length(model) or 2**31)


def digest(samples: list[Sample]) -> str:
    """Return a SHA-256 of the tokens, of what of them is learned, and of what decides their order."""
    found = hashlib.sha256()
    for sample in samples:
        head = (len(sample.ids), sample.n_prompt, sample.size)
        found.update(np.array([*head, *sample.ids], dtype=np.int64).tobytes())
    return found.hexdigest()


def read_samples(
    model: Any, tokenizer: Any, examples: pd.DataFrame, response: str, max_length: int
) -> tuple[list[Sample], dict[str, int]]:
    """Turn examples into sequences whose response (and EOS) alone is learned.

    The prompt is tokenised by itself, just as generation does, so the boundary is exact. Words of prompt and
    response that spell a control token are text; a thought that the template opens is closed, empty, before
    the response.

    Args:
        model: whose EOS tokens end a response.
        tokenizer: its tokenizer.
        examples: frame with instruction, the ``response`` column, and maybe context and history (see
            ``conversation``). A column reference, where there is one, decides the order of training
            (``Sample.size``), whatever is learned.
        response: the column to learn.
        max_length: tokens of a sequence at most; a longer response is truncated.

    Returns:
        The samples, and how many responses were truncated (``cut``) and rows left out (``left_out``) because
        their prompt alone fills ``max_length``.

    Raises:
        ValueError: for missing columns, a cell that holds no text (naming column and row), an empty response,
            or no prompt that fits.
    """
    rows = checked(examples, ["instruction", response], "examples").to_dict("records")
    said = [field_text(row, response) for row in rows]
    if empty := [row.get("id", k) for k, row in enumerate(rows) if not said[k].strip()]:
        raise ValueError(f"column {response} must hold a text in every row; row {empty[0]!r} has none")
    prompts = [chat_ids(tokenizer, conversation(row)) for row in rows]
    end = _end_of_turn(tokenizer, end_tokens(model, tokenizer))
    # what a response says is text: a mark spelled in it ends no turn
    read = partial(text_ids, tokenizer, begin=False, control=False)
    learned = [read(text) for text in said]
    other = "reference" in examples and response != "reference"
    written = [read(field_text(row, "reference")) for row in rows] if other else learned
    samples, cut = [], 0
    for prompt, answer, reference in zip(prompts, learned, written, strict=True):
        if len(prompt) < max_length:
            cut += len(prompt + answer + end) > max_length
            size = min(len(prompt + reference), max_length)
            samples.append(Sample((prompt + answer + end)[:max_length], len(prompt), size))
    if not samples:
        shortest = min(map(len, prompts))
        raise ValueError(f"max_length must be above {shortest}, the shortest prompt, got {max_length}")
    return samples, {"cut": cut, "left_out": len(rows) - len(samples)}


def text_samples(
    tokenizer: Any, texts: Sequence[str], max_length: int, *, concatenate: bool = False
) -> tuple[list[Sample], dict[str, int]]:
    """Turn plain texts into sequences that are learned whole.

    Args:
        tokenizer: its begin mark stands before each text, once, where it has one.
        texts: none empty.
        max_length: tokens of a sequence at most.
        concatenate: put the texts one behind the other, each ended by EOS, and cut them into sequences of
            ``max_length`` tokens, of which the last can be shorter; else each is truncated (GRO B.1).

    Returns:
        The samples, and how many texts were truncated (``cut``), or left out for having a single token.

    Raises:
        ValueError: for an empty text, or none of at least 2 tokens.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"examples must be texts that are not empty; number {index} is {text!r}")
    rows = [text_ids(tokenizer, text) for text in texts]
    if concatenate:
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        whole = [token for ids in rows for token in (ids if ids[-1:] == eos else ids + eos)]
        samples = [Sample(whole[k : k + max_length], 1) for k in range(0, len(whole) - 1, max_length)]
        counts = {"cut": 0, "left_out": 0}
    else:
        samples = [Sample(ids[:max_length], 1) for ids in rows if len(ids) > 1]
        counts = {"cut": sum(len(ids) > max_length for ids in rows), "left_out": len(rows) - len(samples)}
    if not samples:
        raise ValueError(f"examples must hold a text of at least 2 tokens, got none in {len(texts)} texts")
    return [replace(sample, size=len(sample.ids)) for sample in samples], counts


#: in the place of a sample that only fills the last update up for all processes: nothing is learned of it
NO_SAMPLE = Sample([0], 1)


class OrderedSamples(Dataset[tuple[Sample, float]]):
    """The samples in the order of the training, each with the weight of its update.

    Attributes:
        order: which sample is learned at each place (``training_order``), the same for every column of the
            same rows.
        places: the same with each update's samples longest first, as they lie in its micro-batches.
    """

    def __init__(self, samples: list[Sample], config: HealingConfig, *, whole: bool = False) -> None:
        """Fix the order of the whole training.

        Args:
            samples: what there is to learn.
            config: its epochs or steps, batch_size, seed and packing.
            whole: weigh an update by all its tokens, not by the learned ones.
        """
        self.samples, self.config, self.whole = samples, config, whole
        steps, batch, grouped = config.max_steps, config.batch_size, not config.packing
        total = steps * batch if steps else round(config.epochs * len(samples))
        if not total:
            raise ValueError(f"epochs={config.epochs:g} of {len(samples)} examples is not one; raise epochs")
        sizes = [sample.size for sample in samples]
        self.order = training_order(sizes, total, batch, config.seed, grouped=grouped)
        self.length = total
        updates = [self.order[start : start + batch] for start in range(0, total, batch)]
        tokens = [sum(len(samples[k].ids) for k in update) for update in updates]
        learned = [sum(samples[k].learned for k in update) for update in updates]
        self.weights = [1.0 / counted for counted in (tokens if whole else learned)]
        self.tokens = np.cumsum(tokens)
        if grouped:  # an update is one sum: how its samples lie in micro-batches is a matter of padding alone
            updates = [sorted(update, key=lambda k: -len(samples[k].ids)) for update in updates]
        self.places = [k for update in updates for k in update]

    def fill_up(self, together: int) -> None:
        """Fill the last update up to a multiple of the samples that all processes work on at once."""
        self.length = -(-len(self.order) // together) * together

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> tuple[Sample, float]:
        sample = self.samples[self.places[place]] if place < len(self.places) else NO_SAMPLE
        return sample, self.weights[place // self.config.batch_size]

    def is_even(self, together: int) -> bool:
        """Return whether every batch of so many samples has the same shape."""
        return len({len(sample.ids) for sample in self.samples}) == 1 and len(self.order) % together == 0

    def epoch(self, step: int) -> float:
        """Return how often every sample was seen, on average, after so many updates."""
        return min(step * self.config.batch_size, len(self.order)) / len(self.samples)


def collate(
    rows: list[tuple[Sample, float]], *, packed: bool = False, whole: bool = False
) -> dict[str, torch.Tensor]:
    """Make one batch: padded on the right, the loss asked for at the learned positions only.

    No attention mask: a causal model never looks ahead to the padding, and without one attention takes its
    fast path.

    Args:
        rows: samples, each with the weight of its update.
        packed: let short samples share a row, none longer than the longest sample. Position ids that begin
            again at 0 tell transformers where a sample begins, so that none sees another.
        whole: also give ``lengths`` [row], the tokens of each sample; 0 for one that only fills up.

    Returns:
        ``input_ids`` [row, token]; ``positions`` [n], the places in the flattened rows whose logits are
        needed; ``targets`` [n], the next token there; ``weight``, what the summed loss is multiplied by; when
        packed, ``position_ids`` [row, token].
    """
    samples = [sample for sample, _ in rows]
    longest = max(len(sample.ids) for sample in samples)
    groups = in_rows(samples, longest) if packed else [[sample] for sample in samples]
    ids = _rows(groups, lambda sample: torch.tensor(sample.ids))
    learned = _rows(groups, lambda sample: torch.arange(len(sample.ids)) >= sample.n_prompt).flatten()
    batch = {
        "input_ids": ids,
        "positions": learned.nonzero()[:, 0] - 1,
        "targets": ids.flatten()[learned],
        "weight": torch.tensor(rows[0][1]),
    }
    if whole:
        batch["lengths"] = torch.tensor([len(one.ids) if one.learned else 0 for one in samples])
    if packed:
        batch["position_ids"] = _rows(groups, lambda sample: torch.arange(len(sample.ids)))
    return batch


def _rows(groups: list[list[Sample]], values: Callable[[Sample], torch.Tensor]) -> torch.Tensor:
    """Return the values of each group's samples one after another ``[row, token]``, 0 behind the last."""
    rows = [torch.cat([values(sample) for sample in group]) for group in groups]
    return pad_sequence(rows, batch_first=True)


def check_packing(model: Any) -> None:
    """Refuse a model that lets samples in one row see each other.

    Raises:
        ValueError: when a sample's last states differ with another sample before it in its row.
    """
    base = unwrap(model)
    device, size = next(base.parameters()).device, base.config.get_text_config(decoder=True).vocab_size
    ids = torch.tensor([*range(3, 9), *range(11, 17)], device=device)[None] % size
    if not reads_apart(base, ids, [6, 6], position_ids=torch.arange(6, device=device).repeat(2)[None]):
        kind = f"{type(base).__name__} ({base.config._attn_implementation} attention)"
        raise ValueError(f"packing must be False for {kind}: its samples see each other in a row")


def in_rows(samples: list[Sample], length: int) -> list[list[Sample]]:
    """Put samples into rows of so many tokens, each, longest first, into the first row that has room."""
    rows: list[list[Sample]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda sample: -len(sample.ids)):
        size = len(sample.ids)
        place = next((k for k, left in enumerate(room) if left >= size), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(length)
        rows[place].append(sample)
        room[place] -= size
    return rows


def _end_of_turn(tokenizer: Any, ends: list[int]) -> list[int]:
    """Return the tokens that end a response: what the chat template writes, up to its first EOS."""
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not getattr(tokenizer, "chat_template", None):
        return own
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "the reply"}]
    tail = render_chat(tokenizer, turns, generation_prompt=False).rpartition("the reply")[2]
    tail = tokenizer(tail, add_special_tokens=False)["input_ids"]
    place = next((k for k, token in enumerate(tail) if token in ends), None)
    return own if place is None else tail[: place + 1]
