"""What a model in memory reads, in tokens as the lm-evaluation-harness has them: each text read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from unittest.mock import patch

import numpy as np
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix
from tokenizers import Tokenizer

from workbench.models.chat import render_chat

#: tokens of texts by tokenizer, while several variants are asked the same
_known: ContextVar[dict[Any, Any] | None] = ContextVar("known", default=None)
#: longest window of a text that is read in windows, where no ``max_length`` is given, and most of its logits
_LONGEST_WINDOW, _WINDOW_LOGITS = 8192, 2**29
#: what the tokenizer is told: masks and types of tokens take longer to make than tokens
_IDS_ALONE = {"verbose": False, "return_attention_mask": False, "return_token_type_ids": False}


@contextmanager
def texts_remembered() -> Iterator[None]:
    """Read no text twice until leaving: the variants of a model are asked the same."""
    token = _known.set({} if _known.get() is None else _known.get())
    try:
        yield
    finally:
        _known.reset(token)


class _Fast:
    """A tokenizer of the tokenizers library that does not note where in a text each token is."""

    def __init__(self, whole: Tokenizer) -> None:
        object.__setattr__(self, "whole", whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, "encode_batch_fast" if name == "encode_batch" else name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.whole, name, value)


@contextmanager
def _without_offsets(tokenizer: Any) -> Iterator[None]:
    """Let a tokenizer read batches without offsets until leaving: the same tokens in less time."""
    whole = getattr(tokenizer, "_tokenizer", None)
    if not isinstance(whole, Tokenizer):  # one in Python
        yield
        return
    with patch.object(tokenizer, "_tokenizer", _Fast(whole)):
        yield


class Reading(HFLM):  # type: ignore[misc, unused-ignore]  # lm_eval carries no types
    """The harness's Hugging Face model around a model object, as far as it reads.

    Attributes:
        mark: the token that the tokenizer puts in front of every text; None where it puts none.
        window: tokens of a text that are read at once.
    """

    def __init__(self, model: Any, tokenizer: Any, **settings: Any) -> None:
        """Put the harness around a model; ``settings`` are its own, and ``thinking`` and ``template``."""
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise ValueError("tokenizer must have a begin or an end token before the first token, got none")
        self.chat = {"thinking": settings.pop("thinking", False), "template": settings.pop("template", None)}
        # what is generated behind a thought is the answer
        settings |= {"think_end_token": "</think>"} if self.chat["thinking"] else {}
        super().__init__(pretrained=model, tokenizer=tokenizer, **settings)
        shared = _known.get()
        # tokens by text and whether special ones are added; None: as the tokenizer does
        self.known: dict[Any, np.ndarray] = ({} if shared is None else shared).setdefault(id(tokenizer), {})
        self.window = self._max_length or min(self.max_length, self._bearable())
        begin = tokenizer.bos_token_id
        self.mark = begin if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a chat as the prompts of healing and generation have it, the beginning of an answer last."""
        if add_generation_prompt:
            return render_chat(self.tokenizer, chat_history, **self.chat)
        *turns, begun = chat_history
        return render_chat(self.tokenizer, turns, **self.chat) + begun["content"]

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Any, Any]]:
        """Return the tokens of (context, continuation) as in the harness; each text is read once."""
        self._read([text for head, tail in pairs if head for text in (head.rstrip(), head + tail)])
        self._read([tail for head, tail in pairs if not head], add_special_tokens=False)
        return [self._encode_pair(*pair) if pair[0] else self._after_nothing(pair[1]) for pair in pairs]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **settings: Any) -> Any:
        """Return the tokens of a text as in the harness; those of a text that was read are known."""
        known = self.known.get((string, add_special_tokens))
        return super().tok_encode(string, add_special_tokens, **settings) if known is None else known

    def _after_nothing(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids, first = self.known[text, False], self.prefix_token_id
        return (ids[:1], ids[1:]) if ids[0] == first else (np.array([first], dtype=ids.dtype), ids)

    def _read(self, texts: list[str], add_special_tokens: bool | None = None) -> None:
        """Put the tokens of texts into ``known``, as ``tok_encode`` of each gives them."""
        new, mark = dict.fromkeys(texts), self.tokenizer.decode(self.prefix_token_id)
        unread = [text for text in new if (text, add_special_tokens) not in self.known]
        begun = [text for text in unread if add_special_tokens is None and has_bos_prefix(text, mark)]
        others = [text for text in unread if text not in set(begun)] if begun else unread
        for some, asked in ((begun, False), (others, add_special_tokens)):
            settings = _add_special_kwargs(asked, self.add_bos_token) | _IDS_ALONE
            with _without_offsets(self.tokenizer):
                ids = self.tokenizer(some, **settings)["input_ids"] if some else []
            read = ((text, add_special_tokens) for text in some)
            self.known |= zip(read, (np.array(one, dtype=np.int32) for one in ids), strict=True)

    def bare_ids(self, text: str) -> list[int]:
        """Return the tokens of a text without what it begins with: a mark in it, or the tokenizer's."""
        ids = list(self.tok_encode(text))
        return ids[1:] if ids[:1] == [self.prefix_token_id] else ids

    def marked_ids(self, text: str) -> list[int]:
        """Return the tokens of a text, with the mark in front of it once if the tokenizer has one."""
        return list(self.tok_encode(text)) if self.mark is None else [self.mark, *self.bare_ids(text)]

    def _bearable(self) -> int:
        """Return the longest window whose logits fit, a power of 2."""
        fit = max(1, _WINDOW_LOGITS // int(self.config.get_text_config().vocab_size))
        return min(_LONGEST_WINDOW, 1 << (fit.bit_length() - 1))

    def windows(self, ids: list[int], fill: bool) -> Iterator[tuple[list[int], list[int]]]:
        """Cut a text into (what is read, what is predicted), together at most a token more than the window.

        The first window reads the text's first token; each later one the mark, if there is one, and the end
        of the window before.
        """
        place = 1
        while place < len(ids):
            lead = [] if self.mark is None or place == 1 else [self.mark]
            room = self.window - len(lead)
            rest = ids[place : place + room]
            back = room + 1 - len(rest) if fill else 1
            yield [*lead, *ids[max(place - back, 0) : place]], rest
            place += len(rest)
