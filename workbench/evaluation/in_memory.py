"""A model in memory as the lm-evaluation-harness asks it: in bounded memory, every number checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from transformers import LogitsProcessorList

from workbench.bars import tqdm
from workbench.evaluation.answers import Answers
from workbench.evaluation.prefixes import Batch, can_share, least_saved, plan, room_for
from workbench.models.chat import render_chat
from workbench.models.hooks import watch_states
from workbench.models.processes import everyones, place, shares

#: tokens of texts by tokenizer, while several variants are asked the same
_known: ContextVar[dict[Any, Any] | None] = ContextVar("known", default=None)
#: logits that exist at once: places x vocabulary (1 GiB in bfloat16, and their softmax)
_LOGITS = 2**29
#: longest window of a text that is read in windows, where no ``max_length`` is given
_LONGEST_WINDOW = 8192
#: tokens of a batch that is generated where ``batch_size`` is "auto", prompts and answers
_GENERATED = 2**15


@contextmanager
def texts_remembered() -> Iterator[None]:
    """Read no text twice until leaving: the variants of a model are asked the same."""
    token = _known.set({} if _known.get() is None else _known.get())
    try:
        yield
    finally:
        _known.reset(token)


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
        shared = _known.get()
        # by text and whether special tokens are added; None: as the tokenizer does
        self.known: dict[tuple[str, bool | None], np.ndarray] = (
            {} if shared is None else shared.setdefault(id(tokenizer), {})
        )
        self.window = self.max_length if max_length else min(self.max_length, self._bearable())
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
        pairs = self.encoded([request.args for request in requests])
        for request, (context, continuation) in zip(requests, pairs, strict=True):
            self._note(request, len(context) + len(continuation) > self.max_length + 1)
        return self._loglikelihood_tokens([(None, *pair) for pair in pairs])

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Any, Any]]:
        """Return the tokens of (context, continuation) as in the harness; each text is read once."""
        split = [_spaces_moved(*pair) if pair[0] else None for pair in pairs]
        self._read([text for one in split if one for text in (one[0], "".join(one))])
        self._read([text for context, text in pairs if not context], add_special_tokens=False)
        return [
            self._after_nothing(text) if one is None else self._apart(*one)
            for one, (_, text) in zip(split, pairs, strict=True)
        ]

    def _apart(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        head, whole = self.known[context, None], self.known[context + continuation, None]
        return head, whole[len(head) :]

    def _after_nothing(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids, first = self.known[text, False], self.prefix_token_id
        return (ids[:1], ids[1:]) if ids[0] == first else (np.array([first], dtype=ids.dtype), ids)

    def _read(self, texts: list[str], add_special_tokens: bool | None = None) -> None:
        """Put the tokens of texts into ``known``, as ``tok_encode`` of each gives them."""
        new = list(dict.fromkeys(text for text in texts if (text, add_special_tokens) not in self.known))
        mark = self.tokenizer.decode(self.prefix_token_id)
        marked = [add_special_tokens is None and has_bos_prefix(text, mark) for text in new]
        for begun in (False, True):
            some = [text for text, its in zip(new, marked, strict=True) if its == begun]
            asked = (
                False if begun else self.add_bos_token if add_special_tokens is None else add_special_tokens
            )
            settings = {} if asked is None else {"add_special_tokens": asked}
            ids = self.tokenizer(some, verbose=False, **settings)["input_ids"] if some else []
            self.known |= {
                (text, add_special_tokens): np.array(one, dtype=np.int32)
                for text, one in zip(some, ids, strict=True)
            }

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, *, sharing: bool = True
    ) -> list[tuple[float, bool]]:
        """Answer (text, context, continuation): inputs that begin alike share what they have in common."""
        pairs = [(np.asarray(c, np.int32), np.asarray(t, np.int32)) for _, c, t in requests]
        if (longest := max(len(continuation) for _, continuation in pairs)) > self.max_length:
            raise ValueError(
                f"max_length must be at least {longest}, the longest answer in tokens, got {self.max_length}"
            )
        inputs: dict[bytes, int] = {}
        texts: list[np.ndarray] = []
        asked: list[int] = []
        users: list[list[int]] = []
        for number, (context, continuation) in enumerate(pairs):
            text = np.concatenate([context, continuation])[-(self.max_length + 1) :][:-1]
            k = inputs.setdefault(text.tobytes(), len(texts))
            if k == len(texts):
                texts.append(text)
                asked.append(0)
                users.append([])
            asked[k] = max(asked[k], len(continuation))
            users[k].append(number)
        answers = Answers(self, [continuation for _, continuation in pairs], users)
        found = answers.of(self._planned(texts, asked, sharing))
        return [found[number] for number in range(len(pairs))]

    def _planned(self, texts: list[np.ndarray], asked: list[int], sharing: bool) -> list[Batch]:
        """Lay inputs out in batches that fit into memory, the same in every process."""
        places = max(1, _LOGITS // self.config.get_text_config().vocab_size)
        room = min(everyones(room_for(self.model)))
        size: dict[str, Any] = {"rows": self.most or len(texts), "tokens": room, "places": places}
        batches = plan(texts, asked, sharing=sharing, least=least_saved(self.model), **size)
        if any(batch.shared for batch in batches) and not can_share(self.model):
            batches = plan(texts, asked, sharing=False, **size)
        return batches

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
        if self.window < self.max_length and max(map(len, texts), default=0) > self.window + 1:
            warnings.warn(
                f"texts of more than {self.window} tokens are read in windows of so many, not of the model's "
                f"{self.max_length}, whose logits would take too much memory; max_length= takes another",
                stacklevel=1,  # once for all passes
            )
        windows = [(k, *window) for k, ids in enumerate(texts) for window in self.windows(ids, fill)]
        self._expect(len(windows))
        sums = np.zeros(len(texts))
        if windows:
            answers = self._loglikelihood_tokens([(None, *window) for _, *window in windows], sharing=False)
            np.add.at(sums, [k for k, *_ in windows], [total for total, _ in answers])
        return sums

    def _bearable(self) -> int:
        """Return the longest window whose logits fit, a power of 2."""
        fit = max(1, _LOGITS // int(self.config.get_text_config().vocab_size))
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

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """As in the harness; notes which items are truncated to leave room for the answer."""
        self._expect(len(requests))
        self._read([request.args[0] for request in requests])
        longest = 1
        for request in requests:
            prompt, settings = request.args
            length, room = len(self.known[prompt, None]), self.max_length - self.answer_length(settings)
            self._note(request, length > room)
            longest = max(longest, min(length, room) + self.max_length - room)
        return self._generated(requests, self.most or max(1, _GENERATED // longest))

    def _generated(self, requests: list[Any], rows: int) -> list[str]:
        """Generate batch after batch as the harness gathers them, each by one of the processes there are."""
        order = sorted(range(len(requests)), key=lambda k: self._longest_first(requests[k]))
        kinds: dict[str, list[int]] = {}
        for k in order:
            kinds.setdefault(repr(requests[k].args[1]), []).append(k)
        batches = [some[at : at + rows] for some in kinds.values() for at in range(0, len(some), rows)]
        owners = shares([sum(-self._longest_first(requests[k])[0] for k in some) for some in batches])
        mine: dict[int, str] = {}
        for some, owner in zip(batches, owners, strict=True):
            if owner == place()[0]:
                mine |= zip(some, self._in_halves([requests[k] for k in some]), strict=True)
        found = {k: text for part in everyones(mine) for k, text in part.items()}
        return [found[k] for k in range(len(requests))]

    def _longest_first(self, request: Any) -> tuple[int, str]:
        text = request.args[0]
        return -len(self.known[text, None]), text

    def _in_halves(self, requests: list[Any]) -> list[str]:
        """Generate one batch, in halves where memory does not suffice."""
        self.batch_size_per_gpu = rows = min(self.most or len(requests), len(requests))
        try:
            found: list[str] = super().generate_until(requests, disable_tqdm=True)
            return found
        except torch.OutOfMemoryError as error:
            self.take_less(rows, error)
        return self._in_halves(requests)

    def take_less(self, rows: int, error: BaseException) -> None:
        """Take half as many prompts at once from now on.

        Raises:
            ValueError: when it was one.
        """
        if rows == 1:
            raise ValueError(
                f"max_length must be smaller: of {self.max_length} tokens, no prompt fits into memory"
            ) from error
        self.most = rows // 2
        warnings.warn(f"{rows} prompts do not fit into memory; now {self.most}", stacklevel=2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def answer_length(self, settings: dict[str, Any] | None) -> int:
        """Return how many tokens a task generates with these settings."""
        return int(normalize_gen_kwargs(dict(settings or {}), self.max_gen_toks)["max_gen_toks"])

    def _model_call(self, inps: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        return self.checked(inps, super()._model_call(inps, *args, **settings))

    def _model_generate(self, context: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        settings["logits_processor"] = LogitsProcessorList([self.checked])
        found: torch.Tensor = super()._model_generate(context, *args, **settings)
        return found

    def checked(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return logits that can be compared: in an argmax, the first of several that are no numbers wins."""
        if not torch.isfinite(logits.amax(-1)).all():
            raise ValueError(f"the model's logits are not finite; {broken_part(self.model, ids)}")
        return logits

    def mixed(self) -> Any:
        """Return the context in which the harness runs the model."""
        kind = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=kind, enabled=kind is not None)

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


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    """Let spaces at the end of a context begin what follows, as the harness does."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation
