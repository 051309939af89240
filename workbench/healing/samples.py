"""What healing trains on: exact masks, and batches that the seed fixes before the first step.

So a training that was killed goes on with the same batches and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from workbench.checks import checked
from workbench.data.instructions import user_message
from workbench.generation.engines import by_length
from workbench.generation.responses import chat_prompt, context_length, end_tokens, token_ids
from workbench.healing.config import HealingConfig
from workbench.models.hooks import inference
from workbench.models.layers import decoder_forward, unwrap

#: batches whose examples are sorted by length together: little padding, and the order still random
POOL = 32


@dataclass(frozen=True)
class Sample:
    """One sequence to train on.

    Attributes:
        ids: prompt, response and EOS as tokens.
        n_prompt: how many tokens at the beginning are read but not learned, at least 1.
    """

    ids: list[int]
    n_prompt: int

    @property
    def learned(self) -> int:
        """How many tokens count in the loss."""
        return len(self.ids) - self.n_prompt


def read_examples(
    model: Any, tokenizer: Any, examples: Any, response: str, max_length: int
) -> tuple[list[Sample], dict[str, int]]:
    """Return the samples of a frame (``read_samples``) or of a list of texts (``text_samples``)."""
    if isinstance(examples, pd.DataFrame):
        return read_samples(model, tokenizer, examples, response, max_length)
    if isinstance(examples, str) or not isinstance(examples, Sequence) or not len(examples):
        raise ValueError(f"examples must be a frame or a list of at least one text, got {examples!r:.80}")
    return text_samples(tokenizer, examples, max_length)


def sequence_limit(model: Any, max_length: int | None) -> int:
    """Return how many tokens of an example are read: ``max_length``, 2048 for None, within the context."""
    return min(max_length or 2048, context_length(model) or 2**31)


def digest(samples: list[Sample]) -> str:
    """Return a SHA-256 of the tokens and of what of them is learned."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(np.array([len(sample.ids), sample.n_prompt, *sample.ids], dtype=np.int64).tobytes())
    return found.hexdigest()


def read_samples(
    model: Any, tokenizer: Any, examples: pd.DataFrame, response: str, max_length: int
) -> tuple[list[Sample], dict[str, int]]:
    """Turn examples into sequences whose response (and EOS) alone is learned.

    The prompt is tokenised by itself, just as generation does, so the boundary is exact.

    Args:
        model: whose EOS tokens end a response.
        tokenizer: its tokenizer.
        examples: frame with instruction, the ``response`` column, and maybe context.
        response: the column to learn.
        max_length: tokens of a sequence at most; a longer response is truncated.

    Returns:
        The samples, and how many responses were truncated (``cut``) and rows left out (``left_out``) because
        their prompt alone fills ``max_length``.

    Raises:
        ValueError: for missing columns, an empty response, or no prompt that fits.
    """
    rows = _checked_rows(examples, response)
    messages = [user_message(row["instruction"], row.get("context") or "") for row in rows]
    prompts = token_ids(tokenizer, [chat_prompt(tokenizer, message) for message in messages])
    end = _end_of_turn(tokenizer, end_tokens(model, tokenizer))
    samples, cut = [], 0
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
        raise ValueError(f"examples must hold a text of at least 2 tokens, got none in {len(texts)} texts")
    long = sum(len(sample.ids) == max_length for sample in samples)
    return samples, {"cut": long, "left_out": len(texts) - len(samples)}


def training_order(
    lengths: Sequence[int], total: int, batch_size: int, seed: int, *, grouped: bool = True
) -> list[int]:
    """Return which sample to take at each place of the whole training, batch after batch.

    Over all places every sample comes equally often, or once more than others.

    Args:
        lengths: tokens of each sample.
        total: places to fill, over all epochs.
        batch_size: samples an update.
        seed: of the order.
        grouped: whether a batch holds samples of like length, longest first (little padding), or whichever
            come (for packing).

    >>> training_order([4, 9, 2, 7], total=4, batch_size=2, seed=1)
    [1, 3, 0, 2]
    """
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(len(lengths)) for _ in range(math.ceil(total / len(lengths)))]
    order: list[int] = np.concatenate(rounds)[:total].tolist()
    if not grouped:
        return order
    places: list[int] = []
    for first in range(0, total, POOL * batch_size):
        pool = order[first : first + POOL * batch_size]
        batches = by_length([lengths[k] for k in pool], batch_size)
        rest = batches.pop() if len(batches[-1]) < batch_size else []
        for batch in [*(batches[k] for k in rng.permutation(len(batches))), rest]:
            places += [pool[k] for k in batch]
    return places


#: in the place of a sample that only fills the last update up for all processes: nothing is learned of it
NO_SAMPLE = Sample([0], 1)


class OrderedSamples(Dataset[tuple[Sample, float]]):
    """The samples in the order of the training, each with the weight of its update."""

    def __init__(self, samples: list[Sample], config: HealingConfig) -> None:
        """Fix the order of the whole training.

        Args:
            samples: what there is to learn.
            config: its epochs or steps, batch_size, seed and packing.
        """
        self.samples, self.batch_size, self.packed = samples, config.batch_size, config.packing
        steps, lengths = config.max_steps, np.array([len(sample.ids) for sample in samples])
        total = steps * config.batch_size if steps else max(1, round(config.epochs * len(samples)))
        self.order = training_order(
            lengths.tolist(), total, config.batch_size, config.seed, grouped=not config.packing
        )
        self.length = len(self.order)
        learned = np.array([samples[k].learned for k in self.order])
        starts = range(0, len(self.order), config.batch_size)
        self.weights = 1.0 / np.add.reduceat(learned, starts)
        self.tokens = np.cumsum(np.add.reduceat(lengths[self.order], starts))

    def fill_up(self, together: int) -> None:
        """Fill the last update up to a multiple of the samples that all processes work on at once."""
        self.length = -(-len(self.order) // together) * together

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> tuple[Sample, float]:
        sample = self.samples[self.order[place]] if place < len(self.order) else NO_SAMPLE
        return sample, float(self.weights[place // self.batch_size])

    def is_even(self, together: int) -> bool:
        """Return whether every batch of so many samples has the same shape."""
        return len({len(sample.ids) for sample in self.samples}) == 1 and len(self.order) % together == 0

    def epoch(self, step: int) -> float:
        """Return how often every sample was seen, on average, after so many updates."""
        return min(step * self.batch_size, len(self.order)) / len(self.samples)


def collate(rows: list[tuple[Sample, float]], *, packed: bool = False) -> dict[str, torch.Tensor]:
    """Make one batch: padded on the right, the loss asked for at the learned positions only.

    No attention mask: a causal model never looks ahead to the padding, and without one attention takes its
    fast path.

    Args:
        rows: samples, each with the weight of its update.
        packed: let short samples share a row, none longer than the longest sample. Position ids that begin
            again at 0 tell transformers where a sample begins, so that none sees another.

    Returns:
        ``input_ids`` [row, token]; ``positions`` [n], the places in the flattened rows whose logits are
        needed; ``targets`` [n], the next token there; ``weight``, what the summed loss is multiplied by; when
        packed, ``position_ids`` [row, token].
    """
    samples = [sample for sample, _ in rows]
    groups = _packed(samples) if packed else [[sample] for sample in samples]
    ids = _rows(groups, lambda sample: torch.tensor(sample.ids))
    learned = _rows(groups, lambda sample: torch.arange(len(sample.ids)) >= sample.n_prompt).flatten()
    batch = {
        "input_ids": ids,
        "positions": learned.nonzero()[:, 0] - 1,
        "targets": ids.flatten()[learned],
        "weight": torch.tensor(rows[0][1]),
    }
    if packed:
        batch["position_ids"] = _rows(groups, lambda sample: torch.arange(len(sample.ids)))
    return batch


def _rows(groups: list[list[Sample]], values: Callable[[Sample], torch.Tensor]) -> torch.Tensor:
    """Return the values of each group's samples one after another ``[row, token]``, 0 behind the last."""
    return pad_sequence(
        [torch.cat([values(sample) for sample in group]) for group in groups], batch_first=True
    )


def check_packing(model: Any) -> None:
    """Refuse a model that lets samples in one row see each other.

    Raises:
        ValueError: when a sample's last states differ with another sample before it in its row.
    """
    base = unwrap(model)
    decoder, device = decoder_forward(base), next(base.parameters()).device
    size = base.config.get_text_config(decoder=True).vocab_size
    first, second = (torch.arange(start, start + 6, device=device) % size for start in (3, 11))
    places = torch.arange(6, device=device).repeat(2)
    with inference(base):
        both = decoder(input_ids=torch.cat([first, second])[None], position_ids=places[None], use_cache=False)
        alone = decoder(input_ids=second[None], use_cache=False).last_hidden_state[0]
    packed = both.last_hidden_state[0, 6:]
    gap = (packed - alone).abs().max() / alone.abs().max()
    if not gap <= (1e-4 if base.dtype == torch.float32 else 0.05):
        raise ValueError(
            f"packing must be False for {type(base).__name__} ({base.config._attn_implementation} "
            "attention): its samples see each other when they share a row"
        )


def _packed(samples: list[Sample]) -> list[list[Sample]]:
    """Put samples into rows as long as the longest, which comes first, each into the first row with room."""
    longest, *others = sorted(samples, key=lambda sample: -len(sample.ids))
    groups = [[longest]]
    for sample in others:
        room = len(longest.ids) - len(sample.ids)
        fits = [group for group in groups if sum(len(one.ids) for one in group) <= room]
        if fits:
            fits[0].append(sample)
        else:
            groups.append([sample])
    return groups


def _checked_rows(examples: pd.DataFrame, response: str) -> list[dict[str, Any]]:
    checked(examples, ["instruction", response], "examples")
    rows: list[dict[str, Any]] = examples.astype(object).where(examples.notna(), None).to_dict("records")
    empty = [row.get("id", k) for k, row in enumerate(rows) if not str(row[response] or "").strip()]
    if empty:
        raise ValueError(f"column {response} must hold a text in every row; row {empty[0]!r} has none")
    return rows


def _end_of_turn(tokenizer: Any, ends: list[int]) -> list[int]:
    """Return the tokens that end a response: what the chat template writes, up to its first EOS."""
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not getattr(tokenizer, "chat_template", None):
        return own
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "the reply"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False)
    tail = tokenizer(text.rpartition("the reply")[2], add_special_tokens=False)["input_ids"]
    place = next((k for k, token in enumerate(tail) if token in ends), None)
    return own if place is None else tail[: place + 1]
