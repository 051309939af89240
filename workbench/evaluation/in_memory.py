"""A model in memory as the lm-evaluation-harness asks it: in bounded memory, every number checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import LogitsProcessorList

from workbench.bars import tqdm
from workbench.models.chat import render_chat
from workbench.models.hooks import watch_states

#: logits that exist at once: prompts in a batch x tokens x vocabulary (1 GiB in bfloat16, and their softmax)
_LOGITS = 2**29
#: tokens of a batch that is generated where ``batch_size`` is "auto", prompts and answers
_GENERATED = 2**15


class InMemory(HFLM):  # type: ignore[misc, unused-ignore]  # lm_eval carries no types
    """The harness's Hugging Face model around a model object.

    Attributes:
        truncated: (task, item) of every prompt that lost its beginning because the context is too short.
        mark: the token that the tokenizer puts in front of every text; None where it puts none.
    """

    batch_size_per_gpu: Any  # the harness's own: a number or "auto"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int | str,
        max_length: int | None,
        progress: bool = False,
        thinking: bool = False,
        template: str | None = None,
        **settings: Any,
    ) -> None:
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise ValueError(
                "tokenizer must have a begin or an end token, which the first token follows, got none"
            )
        # what is generated behind a thought is the answer
        settings |= {"think_end_token": "</think>"} if thinking else {}
        super().__init__(pretrained=model, tokenizer=tokenizer, max_length=max_length, **settings)
        self.truncated: set[tuple[str, int]] = set()
        self._rows, self._end = 1, 0  # of the batch that is being gathered
        self.most = None if batch_size == "auto" else int(batch_size)
        self.chat: dict[str, Any] = {"thinking": thinking, "template": template}
        begin = tokenizer.bos_token_id
        self.mark = begin if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else None
        self.bar = tqdm(total=0, desc="evaluation", unit="request", leave=False, disable=not progress)
        self.cache_hook = self  # the harness reports each finished request to it

    def add_partial(self, *_: Any) -> None:
        """One request is answered."""
        self.bar.update()

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a chat as the prompts of healing and generation have it, the beginning of an answer last."""
        if add_generation_prompt:
            return render_chat(self.tokenizer, chat_history, **self.chat)
        *turns, begun = chat_history
        return render_chat(self.tokenizer, turns, **self.chat) + begun["content"]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """As in the harness; notes which items are truncated."""
        self._expect(len(requests))
        answers = super().loglikelihood(requests, disable_tqdm=True)
        for request, length in zip(requests, self._lengths, strict=True):
            self._note(request, length > self.max_length + 1)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> Any:
        self._lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        if (longest := max(len(continuation) for *_, continuation in requests)) > self.max_length:
            raise ValueError(
                f"max_length must be at least {longest}, the longest answer in tokens, got {self.max_length}"
            )
        self.batch_size_per_gpu = "auto"  # lets the harness ask ``_batch_scheduler``
        return self._in_halves(lambda: super(InMemory, self)._loglikelihood_tokens(requests, True))

    def _batch_scheduler(self, pos: int, n_reordered_requests: Sequence[Any]) -> int:
        """Return how many requests go into the batch that the one at ``pos`` is in, the longest first."""
        if pos == 0 or pos >= self._end:
            _, context, continuation = n_reordered_requests[pos]
            length = min(len(context) + len(continuation), self.max_length)
            fit = _LOGITS // (length * self.config.get_text_config().vocab_size)
            self._rows = int(max(1, min(fit, self.most or fit)))
            self._end = pos + self._rows
        return self._rows

    def _in_halves(self, answer: Callable[[], Any]) -> Any:
        """Answer requests, again in half the batches where memory does not suffice."""
        while True:
            try:
                return answer()
            except torch.OutOfMemoryError as error:
                if self._rows == 1:
                    raise ValueError(
                        f"max_length must be smaller: of {self.max_length} tokens, no prompt fits into memory"
                    ) from error
            self.most = self._rows // 2
            warnings.warn(f"{self._rows} prompts do not fit into memory; now {self.most}", stacklevel=2)
            torch.cuda.empty_cache()

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """As in the harness, but every window begins with the mark of a tokenizer that has one, unscored."""
        texts = [self.bare_ids(text) for (text,) in (request.args for request in requests)]
        return self.rolling([[self.prefix_token_id, *ids] for ids in texts]).tolist()

    def bare_ids(self, text: str) -> list[int]:
        """Return the tokens of a text without what it begins with: a mark in it, or the tokenizer's."""
        ids: list[int] = self.tok_encode(text)
        return ids[1:] if ids[:1] == [self.prefix_token_id] else ids

    def marked_ids(self, text: str) -> list[int]:
        """Return the tokens of a text, with the mark in front of it once if the tokenizer has one."""
        return list(self.tok_encode(text)) if self.mark is None else [self.mark, *self.bare_ids(text)]

    def rolling(self, texts: Sequence[list[int]], *, fill: bool = True) -> np.ndarray:
        """Return each text's summed log-likelihood in nats of all its tokens but the first.

        Args:
            texts: tokens of each text; of a text longer than the context, window by window.
            fill: a last window that is short reads as much of the one before as fits, as in the harness.
        """
        windows = [(k, *window) for k, ids in enumerate(texts) for window in self.windows(ids, fill)]
        self._expect(len(windows))
        sums = np.zeros(len(texts))
        if windows:
            answers = self._loglikelihood_tokens([(("", ""), *window) for _, *window in windows])
            np.add.at(sums, [k for k, *_ in windows], [total for total, _ in answers])
        return sums

    def windows(self, ids: list[int], fill: bool) -> Iterator[tuple[list[int], list[int]]]:
        """Cut a text into (what is read, what is predicted), together at most a token more than the context.

        The first window reads the text's first token; each later one the mark, if there is one, and the end
        of the window before.
        """
        place = 1
        while place < len(ids):
            lead = [] if self.mark is None or place == 1 else [self.mark]
            room = self.max_length - len(lead)
            rest = ids[place : place + room]
            back = room + 1 - len(rest) if fill else 1
            yield [*lead, *ids[max(place - back, 0) : place]], rest
            place += len(rest)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """As in the harness; notes which items are truncated to leave room for the answer."""
        self._expect(len(requests))
        longest = 1
        for request in requests:
            prompt, settings = request.args
            length, room = len(self.tok_encode(prompt)), self.max_length - self.answer_length(settings)
            self._note(request, length > room)
            longest = max(longest, min(length, room) + self.max_length - room)
        return self._in_halves(lambda: self._generate(requests, max(1, _GENERATED // longest)))

    def _generate(self, requests: list[Any], fit: int) -> Any:
        self._rows = self.most or fit
        self.batch_size_per_gpu = self._rows
        return super().generate_until(requests, disable_tqdm=True)

    def answer_length(self, settings: dict[str, Any] | None) -> int:
        """Return how many tokens a task generates with these settings."""
        return int(normalize_gen_kwargs(dict(settings or {}), self.max_gen_toks)["max_gen_toks"])

    def _model_call(self, inps: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        return self._checked(inps, super()._model_call(inps, *args, **settings))

    def _model_generate(self, context: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        settings["logits_processor"] = LogitsProcessorList([self._checked])
        found: torch.Tensor = super()._model_generate(context, *args, **settings)
        return found

    def _checked(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return logits that can be compared: in an argmax, the first of several that are no numbers wins."""
        if not torch.isfinite(logits.amax(-1)).all():
            raise ValueError(f"the model's logits are not finite; {broken_part(self.model, ids)}")
        return logits

    def _expect(self, n: int) -> None:
        self.bar.total += n
        self.bar.refresh()

    def _note(self, request: Any, too_long: bool) -> None:
        if too_long:
            self.truncated.add((request.task_name, request.doc_id))


@torch.no_grad()
def broken_part(model: Any, ids: torch.Tensor) -> str:
    """Return where numbers that are not finite begin in a model: a weight, or what a layer gives."""
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"its weight {name} is not"
    found: list[str] = []

    def see(number: int, state: torch.Tensor) -> None:
        if not found and not torch.isfinite(state).all():
            where = f"layer {number - 1} gives" if number else "the embedding gives"
            found.append(f"its weights are, but {where} others ({state.dtype} overflows)")

    with watch_states(model, see):
        model(ids)
    return found[0] if found else "its weights and layers are, its head is not"
