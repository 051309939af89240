"""Texts to padded token batches, the same way for every measure over calibration texts.

Batches are padded on the **right**, whatever the tokenizer's side, and run without an attention mask: a
causal layer never looks ahead, so padding behind a text cannot reach its tokens. That keeps positions right
for every kind of position encoding and attention on its fast path, and needs no pad token. A model whose
earlier tokens do feel what comes behind them is noticed (``padding_is_felt``): its batches are of one length.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from workbench.bars import tqdm
from workbench.checks import listed, whole_number
from workbench.models.hooks import hooked, inference
from workbench.models.identity import describe_model
from workbench.models.layers import decoder_layers, layer_container, longest_context, of_its_positions, unwrap
from workbench.models.probes import input_device, padding_is_felt, rotary_limits


@dataclass(frozen=True)
class Batch:
    """Some of the texts as one rectangle of tokens.

    Attributes:
        texts: position of each row's text in the caller's list.
        ids: ``[row, token]`` token ids.
        mask: ``[row, token]``, True at real tokens, False at padding.
    """

    texts: list[int]
    ids: Tensor
    mask: Tensor

    def on_device_of(self, model: Any) -> tuple[Tensor, Tensor]:
        """Return ids and mask where the model takes its input."""
        device = input_device(model)
        return self.ids.to(device), self.mask.to(device)


def read_tokens(model: nn.Module, tokenizer: Any, texts: Any, max_length: int) -> list[Tensor]:
    """Return the first ``max_length`` tokens of each text, after every check that needs no forward pass.

    Args:
        model: the model that will read them; its vocabulary and number of positions are limits.
        tokenizer: for texts given as strings, with its usual special tokens; may be None for token ids.
        texts: strings, or sequences of token ids (lists, 1-D tensors), which are taken as they are. A string
            is read with the tokenizer's begin mark once, also where it is spelled already; other control
            tokens spelled in it are control tokens (a rendered chat), see ``measured_on``.
        max_length: most tokens read of a text, at least 1; what comes after is left out.

    Raises:
        ValueError: for no texts, an empty text, a text that is neither, token ids with padding, or a
            ``max_length`` out of range.
    """
    whole_number(max_length, "max_length")
    layer_container(model)
    listed(texts, "texts")
    tokens = [_tokens_of(tokenizer, text, number) for number, text in enumerate(texts)]
    _check_unpadded(model, tokenizer, texts, tokens)
    longest = max(len(ids) for ids in tokens)
    positions = longest_context(unwrap(model).config) or longest
    if min(longest, max_length) > positions:
        got = f"{max_length} for a text of {longest} tokens{of_its_positions(unwrap(model).config)}"
        raise ValueError(f"max_length must be between 1 and {positions}, the model's positions, got {got}")
    check_known(model, tokens, "text")
    return [ids[:max_length] for ids in tokens]


def check_known(model: nn.Module, tokens: Iterable[Sequence[int] | Tensor], what: str) -> None:
    """Refuse tokens that the model has no embedding for, as of another model's tokenizer.

    Raises:
        ValueError: naming the first text or example that has one.
    """
    vocabulary = unwrap(model).get_input_embeddings().weight.shape[0]
    for number, ids in enumerate(tokens):
        ids = torch.as_tensor(ids)
        if len(outside := ids[(ids < 0) | (ids >= vocabulary)]):
            raise ValueError(
                f"token ids must be from 0 to {vocabulary - 1}, {what} {number} has {outside[0]}"
            )


def make_batches(
    tokens: Sequence[Tensor],
    *,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    model: nn.Module | None = None,
) -> list[Batch]:
    """Group texts of like length, longest first: memory peaks at once, and little is padding.

    Args:
        tokens: what ``read_tokens`` returned.
        batch_size: most rows of a batch; the rows are spread evenly.
        max_tokens: instead of ``batch_size``, most tokens of a batch, padding included; a longer text runs
            alone.
        model: the model that will read them without a mask: texts that it would read otherwise in one batch
            (``padding_is_felt``, rotary tables that change at some length) are kept apart.

    Raises:
        ValueError: for a limit below 1.
    """
    limit = max_tokens if batch_size is None else batch_size
    most = whole_number(limit, "max_tokens" if batch_size is None else "batch_size")
    order = sorted(range(len(tokens)), key=lambda number: -len(tokens[number]))
    shares = _length_class(model, tokens, alone=batch_size == 1)
    groups: list[list[int]] = []
    for _, part in groupby(order, key=lambda number: shares(len(tokens[number]))):
        if batch_size is None:
            groups += _within(list(part), tokens, most)
        else:
            some = list(part)
            groups += [rows.tolist() for rows in np.array_split(some, -(-len(some) // most))]
    return [_padded(tokens, group) for group in groups]


def _within(order: list[int], tokens: Sequence[Tensor], most: int) -> list[list[int]]:
    groups: list[list[int]] = []
    for number in order:
        if not groups or (len(groups[-1]) + 1) * len(tokens[groups[-1][0]]) > most:
            groups.append([])
        groups[-1].append(number)
    return groups


def _length_class(model: Any, tokens: Sequence[Tensor], *, alone: bool) -> Callable[[int], Any]:
    """Return a function of a text's length: texts of one value may share a batch."""
    lengths = [len(ids) for ids in tokens]
    if model is None or alone or min(lengths) == max(lengths):
        return lambda length: 0
    if padding_is_felt(model, max(tokens, key=len)):
        return lambda length: length
    limits = rotary_limits(model)
    return lambda length: bisect_left(limits, length)


def each_text(
    model: nn.Module,
    batches: Sequence[Batch],
    measure: Callable[[Batch], Tensor],
    *,
    title: str,
    progress: bool = True,
) -> Tensor:
    """Return what ``measure`` makes of each text, ``[text, ...]``, in the order of the caller's texts.

    Args:
        model: runs in evaluation mode without gradients meanwhile.
        batches: every text once.
        measure: returns ``[row, ...]`` for the rows of a batch.
        title: of the progress bar.
        progress: show the bar.
    """
    total = sum(len(batch.texts) for batch in batches)
    with (
        inference(model),
        tqdm(total=total, desc=title, unit="text", disable=not progress) as bar,
        hooked() as hooks,
    ):
        hooks += _told(model, bar)
        parts = []
        for batch in batches:
            parts.append(measure(batch))
            bar.set_postfix_str("", refresh=False)
            bar.update(len(batch.texts))
    order = np.argsort([text for batch in batches for text in batch.texts])
    return torch.cat(parts)[torch.from_numpy(order)]


def _told(model: nn.Module, bar: tqdm) -> list[Any]:
    """Let a bar say which layer runs: a batch may take minutes. Returns the handles of the hooks."""
    steps, layers, head = count(1), decoder_layers(model), unwrap(model).get_output_embeddings()

    def hook(where: str) -> Callable[..., None]:
        def tell(*_: Any) -> None:
            bar.say(f"{where}, step {next(steps):,}")

        return tell

    named = {f"layer {number} of {len(layers)}": layer for number, layer in enumerate(layers, 1)}
    named |= {"output": head} if head is not None else {}
    return [] if bar.disable else [one.register_forward_pre_hook(hook(where)) for where, one in named.items()]


def measured_on(
    model: nn.Module, tokens: Sequence[Tensor], *, tokenizer: Any = None, **settings: Any
) -> dict[str, Any]:
    """Return the ``attrs`` of a frame: what it was measured on and settings.

    Besides the model, a hash of the tokens and their counts: ``duplicates``, texts that repeat an earlier one
    (then ``first_of`` has for each text the first that is equal; intervals take such texts as one), and
    ``control_texts``, texts in which a control token stands besides those that the tokenizer puts around
    every text: rendered chats, or words that happen to spell one.
    """
    digest = hashlib.sha256()
    for ids in tokens:
        digest.update(len(ids).to_bytes(8, "little") + ids.numpy().tobytes())
    counts: dict[str, Any] = {"n_texts": len(tokens), "n_tokens": sum(len(ids) for ids in tokens)}
    first = first_of(tokens)
    counts["duplicates"] = len(first) - len(set(first))
    if counts["duplicates"]:
        counts["first_of"] = first
    if tokenizer is not None:
        counts["control_texts"] = _with_controls(tokenizer, tokens)
    return {"model": describe_model(model), "tokens": digest.hexdigest()[:16], **counts, **settings}


def first_of(tokens: Sequence[Tensor]) -> list[int]:
    """Return for each text the number of the first text that is equal to it."""
    seen: dict[bytes, int] = {}
    return [seen.setdefault(ids.numpy().tobytes(), number) for number, ids in enumerate(tokens)]


def commonest_token(tokenizer: Any, ids: Sequence[int]) -> dict[str, Any]:
    """Return the commonest of some tokens: ``id``, ``text`` (None without a tokenizer), ``share``."""
    ((token, count),) = Counter(ids).most_common(1)
    text = None if tokenizer is None else tokenizer.decode([token])
    return {"id": token, "text": text, "share": count / len(ids)}


def _with_controls(tokenizer: Any, tokens: Sequence[Tensor]) -> int:
    """Return in how many texts a control token stands besides those around every text."""
    marks = {int(id_) for id_ in getattr(tokenizer, "all_special_ids", ())}
    marks |= {id_ for id_, one in getattr(tokenizer, "added_tokens_decoder", {}).items() if one.special}
    if not marks:
        return 0
    around = Counter(tokenizer("", verbose=False)["input_ids"])
    control = torch.tensor(sorted(marks))
    return sum(bool(Counter(ids[torch.isin(ids, control)].tolist()) - around) for ids in tokens)


def _check_unpadded(model: Any, tokenizer: Any, texts: Any, tokens: Sequence[Tensor]) -> None:
    """Raise a ValueError for texts given as ids that begin or end in padding: it would count as text."""
    config = unwrap(model).config.get_text_config(decoder=True)
    marks = config if tokenizer is None else tokenizer
    pad, ends = getattr(marks, "pad_token_id", None), getattr(marks, "eos_token_id", None)
    real = {*(ends if isinstance(ends, list) else [ends]), getattr(marks, "bos_token_id", None)}
    spare = int(pad in real)  # where one token serves as both, a single one is the text's own
    for number, (text, ids) in enumerate(zip(texts, tokens, strict=True)):
        if isinstance(text, str) or pad is None:
            continue
        other = torch.nonzero(ids != pad).flatten()
        first, last = (int(other[0]), int(other[-1])) if len(other) else (0, 0)
        if (padding := max(first, len(ids) - 1 - last)) > spare:
            got = f"text {number} has {padding} pad tokens (id {pad}) at one end"
            raise ValueError(f"token ids must come without padding, such as ids[mask == 1]; {got}")


def _tokens_of(tokenizer: Any, text: Any, number: int) -> Tensor:
    if isinstance(text, str):
        if not text.strip():
            raise ValueError(f"text {number} is empty; leave empty texts out")
        if tokenizer is None:
            raise ValueError(f"tokenizer must be given for texts that are strings, got None (text {number})")
        text = _encoded(tokenizer, text)
    elif isinstance(text, Tensor) and not text.is_floating_point():
        text = text.cpu()
    ids = np.asarray(text, dtype=None if np.size(text) else np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"text {number} must be a string or a list of token ids, got {type(text).__name__}")
    if not len(ids):
        raise ValueError(f"text {number} is empty: no token; leave empty texts out")
    return torch.as_tensor(ids.astype(np.int64))


def _encoded(tokenizer: Any, text: str) -> list[int]:
    # cut by the caller: truncation=True would follow truncation_side, and we keep the beginning
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    begin = getattr(tokenizer, "bos_token_id", None)
    spelled = begin is not None and ids[:2] == [begin, begin]  # a rendered chat brings its own
    return ids[1:] if spelled else ids


def _padded(tokens: Sequence[Tensor], group: list[int]) -> Batch:
    ids = pad_sequence([tokens[number] for number in group], batch_first=True, padding_value=-1)
    mask = ids >= 0
    # what pads is never read, so any token will do; a pad token would raise warnings
    return Batch(group, torch.where(mask, ids, ids[:, :1]), mask)
