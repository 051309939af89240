"""What a model is asked, as text and as tokens, and how long its answer may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import is_whole, listed
from workbench.data.instructions import conversation
from workbench.data.sources import as_text
from workbench.generation.decoder import Prompts
from workbench.models.chat import chat_ids, render_chat, text_ids
from workbench.models.layers import longest_context


def chat_prompt(tokenizer: Any, text: str, *, system: str = "") -> str:
    """Return the prompt for a user message: by the chat template, or ``PLAIN_PROMPT`` without one.

    It is the same on every day (``PROMPT_DATE``), with thinking off where a model can think aloud.

    Args:
        tokenizer: whose template is taken.
        text: what the user says.
        system: system prompt; where the template has no place for one, it opens the user's message.
    """
    turns = [{"role": "system", "content": system}] if system else []
    return render_chat(tokenizer, [*turns, {"role": "user", "content": text}])


def asked_ids(tokenizer: Any, asked: pd.DataFrame) -> list[list[int]]:
    """Return the tokens that the rows of a frame are, or were, asked with.

    Args:
        tokenizer: a transformers tokenizer.
        asked: frame of ``respond``, or what is given to it. A row whose ``prompt`` is not what its other
            fields make is read by its ``prompt`` alone.
    """
    found = []
    for row in asked.to_dict("records"):
        turns = conversation(row) if "instruction" in row else []
        if turns and row.get("prompt") in (None, render_chat(tokenizer, turns)):
            found.append(chat_ids(tokenizer, turns))
        else:
            found += token_ids(tokenizer, [row["prompt"]])
    return found


def token_ids(tokenizer: Any, prompts: Sequence[str] | Prompts) -> list[list[int]]:
    """Return the tokens of each prompt, with BOS once where the tokenizer has it, without EOS.

    Args:
        tokenizer: a transformers tokenizer.
        prompts: final texts, in which a control token is one, or tokens, which are taken as they are.

    Raises:
        ValueError: for no prompts, one that is empty, or what is no list of prompts.
    """
    return [_ids_of(tokenizer, prompt, number) for number, prompt in enumerate(listed(prompts, "prompts"))]


def response_room(model: Any, tokenizer: Any, references: Sequence[str], *, longest_prompt: int = 0) -> int:
    """Return a ``max_new_tokens`` that nearly every answer of the references' kind fits into.

    Half as much again as the 99th percentile of their lengths, and 32 tokens more: models say in more words
    what references say in few. Rewrites of Alpaca by Llama 2 have 106 tokens at the median and 359 at the
    90th percentile.

    Args:
        model: whose context is the limit.
        tokenizer: its tokenizer.
        references: answers that are there.
        longest_prompt: tokens of the context that are not there for an answer.

    Returns:
        A multiple of 16, or what the context leaves, at least 1.
    """
    lengths = [len(text_ids(tokenizer, text, begin=False, control=False)) for text in references]
    room = -(-int(1.5 * np.percentile(lengths, 99) + 32) // 16) * 16
    context = context_length(model)
    return room if context is None else max(1, min(room, context - longest_prompt))


def context_length(model: Any) -> int | None:
    """Return how many tokens the model has positions for, None when its configuration sets no limit."""
    return longest_context(model.config)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end a response: those of the model's generation settings and the tokenizer's."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ids = own if isinstance(own, list) else [own]
    return sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})


def _ids_of(tokenizer: Any, prompt: Any, number: int) -> list[int]:
    if isinstance(prompt, str) and prompt.strip():
        # a tokenizer that closes every text would end the response before it begins
        ids = text_ids(tokenizer, as_text(prompt, f"prompt {number}"), end=False, control=True)
        if not ids:
            raise ValueError(f"prompts must have tokens; number {number} has none: {prompt!r:.60}")
        return ids
    if isinstance(prompt, list | tuple) and prompt and all(map(is_whole, prompt)):
        return [int(token) for token in prompt]
    raise ValueError(f"prompts must be texts that are not empty or tokens; number {number} is {prompt!r:.60}")
