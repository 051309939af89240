"""Texts to padded token batches, the same way for every measure over calibration texts.

Batches are padded on the **right**, whatever the tokenizer's side, and run without an attention mask: a
causal layer never looks ahead, so padding behind a text cannot reach its tokens. That keeps positions right
for every kind of position encoding and attention on its fast path, and needs no pad token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from workbench.checks import whole_number
from workbench.models.hooks import inference
from workbench.models.identity import describe_model
from workbench.models.layers import unwrap


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
        return self.ids.to(model.device), self.mask.to(model.device)


def read_tokens(model: nn.Module, tokenizer: Any, texts: Any, max_length: int) -> list[Tensor]:
    """Return the first ``max_length`` tokens of each text, after every check that needs no forward pass.

    Args:
        model: the model that will read them; its vocabulary and number of positions are limits.
        tokenizer: for texts given as strings, with its usual special tokens; may be None for token ids.
        texts: strings, or sequences of token ids (lists, 1-D tensors), which are taken as they are.
        max_length: most tokens read of a text, at least 1; what comes after is left out.

    Raises:
        ValueError: for no texts, an empty text, a text that is neither, or a ``max_length`` out of range.
    """
    whole_number(max_length, "max_length")
    if isinstance(texts, (str, bytes)) or not hasattr(texts, "__len__"):
        raise ValueError(f"texts must be a list of texts, got one {type(texts).__name__}; put it into a list")
    if not len(texts):
        raise ValueError("texts must hold at least one text, got none")
    tokens = [_tokens_of(tokenizer, text, number) for number, text in enumerate(texts)]
    longest = max(len(ids) for ids in tokens)
    config = unwrap(model).config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None) or longest
    if min(longest, max_length) > positions:
        raise ValueError(
            f"max_length must be between 1 and {positions}, the positions of this model, for texts of up to "
            f"{longest} tokens, got {max_length}"
        )
    vocabulary = unwrap(model).get_input_embeddings().weight.shape[0]
    for number, ids in enumerate(tokens):
        if len(outside := ids[(ids < 0) | (ids >= vocabulary)]):
            allowed = f"between 0 and {vocabulary - 1}"
            raise ValueError(f"token ids must be {allowed}, text {number} has {outside[0]}")
    return [ids[:max_length] for ids in tokens]


def make_batches(
    tokens: Sequence[Tensor], *, batch_size: int | None = None, max_tokens: int | None = None
) -> list[Batch]:
    """Group texts of like length, longest first: memory peaks at once, and little is padding.

    Args:
        tokens: what ``read_tokens`` returned.
        batch_size: most rows of a batch; the rows are spread evenly.
        max_tokens: instead of ``batch_size``, most tokens of a batch, padding included; a longer text runs
            alone.

    Raises:
        ValueError: for a limit below 1.
    """
    order = sorted(range(len(tokens)), key=lambda number: -len(tokens[number]))
    if max_tokens is None:
        most = whole_number(batch_size, "batch_size")
        groups = [part.tolist() for part in np.array_split(order, -(-len(order) // most))]
    else:
        whole_number(max_tokens, "max_tokens")
        groups = []
        for number in order:
            if not groups or (len(groups[-1]) + 1) * len(tokens[groups[-1][0]]) > max_tokens:
                groups.append([])
            groups[-1].append(number)
    return [_padded(tokens, group) for group in groups]


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
    with inference(model):
        parts = [measure(batch) for batch in tqdm(batches, desc=title, disable=not progress)]
    order = np.argsort([text for batch in batches for text in batch.texts])
    return torch.cat(parts)[torch.from_numpy(order)]


def last_real_token(mask: Tensor) -> Tensor:
    """Return where each row's last real token is, for padding on either side.

    ``[:, -1]`` is wrong for padding on the right, ``mask.sum() - 1`` for padding on the left.

    Args:
        mask: ``[row, token]``, True (or 1) at real tokens; at least one a row.
    """
    numbered = torch.arange(1, mask.shape[1] + 1, device=mask.device) * mask.bool()
    return numbered.argmax(dim=1)


def measured_on(model: nn.Module, tokens: Sequence[Tensor], **settings: Any) -> dict[str, Any]:
    """Return the ``attrs`` of a frame: what it was measured on (model, a hash of the tokens) and settings."""
    digest = hashlib.sha256()
    for ids in tokens:
        digest.update(len(ids).to_bytes(8, "little") + ids.numpy().tobytes())
    counts = {"n_texts": len(tokens), "n_tokens": sum(len(ids) for ids in tokens)}
    return {"model": describe_model(model), "tokens": digest.hexdigest()[:16], **counts, **settings}


def _tokens_of(tokenizer: Any, text: Any, number: int) -> Tensor:
    if isinstance(text, str):
        if not text.strip():
            raise ValueError(f"text {number} is empty; leave empty texts out")
        if tokenizer is None:
            raise ValueError(f"tokenizer must be given for texts that are strings, got None (text {number})")
        # cut by the caller: truncation=True would follow truncation_side, and we keep the beginning
        text = tokenizer(text, verbose=False)["input_ids"]
    elif isinstance(text, Tensor) and not text.is_floating_point():
        text = text.cpu()
    ids = np.asarray(text, dtype=None if np.size(text) else np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"text {number} must be a string or a list of token ids, got {type(text).__name__}")
    if not len(ids):
        raise ValueError(f"text {number} is empty: no token; leave empty texts out")
    return torch.as_tensor(ids.astype(np.int64))


def _padded(tokens: Sequence[Tensor], group: list[int]) -> Batch:
    ids = pad_sequence([tokens[number] for number in group], batch_first=True, padding_value=-1)
    mask = ids >= 0
    # what pads is never read, so any token will do; a pad token would raise warnings
    return Batch(group, torch.where(mask, ids, ids[:, :1]), mask)
