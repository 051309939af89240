"""A model in memory as the lm-evaluation-harness asks it: in bounded memory, every number checked."""

from __future__ import annotations

import gc
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lm_eval.models.utils import Collator, normalize_gen_kwargs
from transformers import LogitsProcessorList

from workbench.bars import tqdm
from workbench.evaluation.answers import Answers, Pending, end
from workbench.evaluation.launching import Launcher
from workbench.evaluation.layout import Batch, plan
from workbench.evaluation.prefixes import can_share, least_saved, room_for
from workbench.evaluation.reading import Reading
from workbench.generation.decoder import StaticDecoder, why_not_static
from workbench.generation.engines import WORTH_PREPARING
from workbench.generation.prompts import end_tokens
from workbench.models.hooks import not_finite
from workbench.models.processes import everyones, place, shares

#: logits that exist at once: places x vocabulary (1 GiB in bfloat16, and their softmax)
_LOGITS = 2**29
#: requests that are read between two looks whether a GPU has enough to do
_READ = 64
#: tokens of a batch that is generated where ``batch_size`` is "auto", prompts and answers
_GENERATED = 2**15
#: settings that a greedy answer by the static cache follows, or that change none; a model's own among them
_PLAIN = {"attention_mask", "stop", "max_length", "max_new_tokens", "do_sample", "temperature", "top_k"}
_PLAIN |= {"top_p", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}


class InMemory(Reading):
    """The harness's Hugging Face model around a model object, as it is asked.

    What is asked ahead is read, told to the other processes and laid out at once; a thread then gives it to
    a GPU, batch after batch.

    Attributes:
        pending: what a GPU was given, oldest first.
        truncated: (task, item) of every prompt that lost its beginning because the context is too short.
    """

    batch_size_per_gpu: Any  # the harness's own: a number or "auto"

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_size: int | str, progress: bool = False, **settings: Any
    ) -> None:
        """Put the harness around a model; ``settings`` are its own, and ``thinking`` and ``template``."""
        super().__init__(model, tokenizer, **settings)
        self.truncated: set[tuple[str, int]] = set()
        self.ahead: list[tuple[list[Any], Answers, slice]] = []  # what was begun
        self.loads = [0.0] * place()[1]  # of each process, by what was begun
        self.pending: deque[Pending] = deque()
        self.launched: Pending | None = None  # the last pass that a GPU has been given whole
        self.launcher = Launcher(self.device, self._busy, self._show)
        self.answered = 0
        self.keep: Callable[[Any], Any] = lambda samples: samples  # what the other processes get of them
        self.most = None if batch_size == "auto" else int(batch_size)
        self.bar = tqdm(total=0, desc="evaluation", unit="request", leave=False, disable=not progress)
        self.cache_hook = self  # the harness reports each finished request to it

    def add_partial(self, *_: Any) -> None:
        """One request is answered."""
        self.tell(1)

    def tell(self, n: int) -> None:
        """Count requests that are answered; the bar moves in the thread that it belongs to."""
        self.answered += n
        if not self.launcher.given:  # else the launching thread may be the one that tells
            self._show()

    def _busy(self) -> bool:
        copied = self.launched and self.launched.copied
        return copied is not None and not copied.query()

    def _show(self) -> None:
        self.bar.update(self.answered - self.bar.n)

    def share_items(self, shared: bool) -> None:
        """Say whether each process of a launcher is asked items of its own, or all are asked the same."""
        self._rank, self._world_size = place() if shared else (0, 1)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Say that all processes have as many requests as this one: none is asked more to be even."""
        return tensor.repeat(self.world_size)

    def gather_object(self, obj: dict[str, Any], dst: int = 0) -> list[Any]:
        """Return the samples of all processes; what is measured is taken from them afterwards."""
        measured = any(isinstance(found, dict) for found in obj.values())
        return [obj] if measured else everyones(self.keep(obj))

    def barrier(self) -> None:
        """Wait for nobody: the processes meet when they are asked."""

    def _of_all(self, mine: list[Any], *bounds: float) -> tuple[list[Any], slice, list[float]]:
        """Return what is asked in all processes, where this one's part of it is, and the least bounds."""
        told = everyones((mine if self.world_size > 1 else [], bounds))
        parts = [part for part, _ in told] if self.world_size > 1 else [mine]
        start = sum(map(len, parts[: self.rank]))
        least = [min(values) for values in zip(*(theirs for _, theirs in told), strict=True)]
        return [one for part in parts for one in part], slice(start, start + len(mine)), least

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """As in the harness; notes which items are truncated."""
        known = {id(request) for some, *_ in self.ahead for request in some}
        if rest := [request for request in requests if id(request) not in known]:
            self.ask_ahead(rest)
        ahead, self.ahead = self.ahead, []
        found: dict[int, Any] = {}
        for (some, *_), answers in zip(ahead, self._ended([begun for _, *begun in ahead]), strict=True):
            found |= zip(map(id, some), answers, strict=True)
        return [found[id(request)] for request in requests]

    def ask_ahead(self, requests: list[Any]) -> None:
        """Begin to answer what will be asked for later, so that a GPU works while more is built and read."""
        self.ahead.append((requests, *self._begin(self._asked(self._pairs(requests)))))

    @contextmanager
    def asked_ahead(self) -> Iterator[None]:
        """Let what is asked ahead be begun while more is built; after an error nothing of it is at work."""
        try:
            with self.launcher.meanwhile():
                yield
        except BaseException:
            self.ahead, self.loads = [], [0.0] * place()[1]
            self.pending.clear()
            self.launched = None
            raise

    @cached_property
    def room(self) -> int:
        """Tokens of a batch at most, while nothing is at work yet."""
        return room_for(self.model)

    @cached_property
    def least(self) -> float:
        """Tokens that something must save to be worth a pass of its own."""
        return least_saved(self.model)

    @cached_property
    def can_share(self) -> bool:
        """Whether inputs that share tokens give what each alone would, in every process."""
        self.launcher.wait()  # no other has the model meanwhile
        return all(everyones(can_share(self.model)))

    def _pairs(self, requests: list[Any]) -> list[tuple[None, Any, Any]]:
        """Return what requests ask in tokens; notes which items are truncated."""
        pairs: list[Any] = []
        for first in range(0, len(requests), _READ):
            pairs += self.encoded([request.args for request in requests[first : first + _READ]])
            self.launcher.let_launch()
        room = self.max_length + 1
        for request, (context, continuation) in zip(requests, pairs, strict=True):
            self._note(request, len(context) + len(continuation) > room)
        return [(None, *pair) for pair in pairs]

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, *, sharing: bool = True
    ) -> list[tuple[float, bool]]:
        """Answer (text, context, continuation)."""
        (found,) = self._ended([self._begin(self._asked(requests), sharing=sharing)])
        return found

    def _asked(self, requests: Sequence[Any]) -> tuple[list[tuple[bytes, bytes]], slice, list[float]]:
        """Return (input, continuation) of all processes, and the rest of ``_of_all``."""
        room, inputs = self.max_length, []
        once: dict[bytes, bytes] = {}
        for _, context, continuation in requests:
            pair = np.asarray(context, np.int32), np.asarray(continuation, np.int32)
            text = np.concatenate(pair)[-(room + 1) :][:-1].tobytes()
            inputs.append((once.setdefault(text, text), pair[1].tobytes()))
        # of the process that has least memory, or had too little
        return self._of_all(inputs, self.room, self.most or math.inf)

    def _begin(self, told: Any, *, sharing: bool = True) -> tuple[Answers, slice]:
        """Begin to answer: inputs that begin alike share what they have in common.

        Returns:
            The answers to the requests of all processes, and where among them this one's are.
        """
        asked, mine, bounds = told
        room = self.max_length
        self._expect(len(asked))
        if not asked:
            return Answers(self, [], []), mine
        continuations = [np.frombuffer(continuation, dtype=np.int32) for _, continuation in asked]
        if (longest := max(map(len, continuations))) > room:
            raise ValueError(f"max_length must be at least {longest}, an answer's tokens, got {room}")
        users: dict[bytes, list[int]] = {}
        for number, (text, _) in enumerate(asked):
            users.setdefault(text, []).append(number)
        texts = [np.frombuffer(text, dtype=np.int32) for text in users]
        last = [max(len(continuations[number]) for number in some) for some in users.values()]
        answers = Answers(self, continuations, [*users.values()])
        batches = self._planned(texts, last, sharing, *bounds)
        costs = [len(batch.rows) * batch.length + self.least for batch in batches]
        groups = [batch.blocks or k for k, batch in enumerate(batches)]
        extra = [len(batch.blocks) * batch.before + self.least * bool(batch.blocks) for batch in batches]
        own = [owner == place()[0] for owner in shares(costs, groups, extra, self.loads)]
        self.launcher.give(partial(answers.begin, batches, own))
        return answers, mine

    def _ended(self, begun: Sequence[Any]) -> list[list[tuple[float, bool]]]:
        """Return this process's part of all that was begun, once every process is done with its own."""
        self.launcher.give(partial(end, self.pending))
        self.launcher.wait()
        parts = everyones([answers.found for answers, _ in begun])
        self.loads = [0.0] * place()[1]
        ended = []
        for (_, mine), *found in zip(begun, *parts, strict=True):
            together = {number: answer for some in found for number, answer in some.items()}
            ended.append([together[number] for number in range(mine.start, mine.stop)])
        return ended

    def _planned(
        self, texts: list[np.ndarray], asked: list[int], sharing: bool, room: float, rows: float
    ) -> list[Batch]:
        """Lay inputs out in batches that fit into memory, the same in every process."""
        places = max(1, _LOGITS // self.config.get_text_config().vocab_size)
        size: dict[str, Any] = {"rows": int(min(rows, len(texts))), "tokens": int(room), "places": places}
        size["least"] = self.least
        batches = plan(texts, asked, sharing=sharing, **size)
        if any(batch.shared for batch in batches) and not self.can_share:
            batches = plan(texts, asked, sharing=False, **size)
        return batches

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """As in the harness, but every window begins with the mark of a tokenizer that has one, unscored."""
        texts = [self.bare_ids(text) for (text,) in (request.args for request in requests)]
        return self.rolling([[self.prefix_token_id, *ids] for ids in texts]).tolist()

    def rolling(self, texts: Sequence[list[int]], *, fill: bool = True) -> np.ndarray:
        """Return each text's summed log-likelihood in nats of all its tokens but the first.

        Args:
            texts: tokens of each text; of a text longer than the context, window by window.
            fill: a last window that is short reads as much of the one before as fits, as in the harness.
        """
        if self.window < self.max_length and max(map(len, texts), default=0) > self.window + 1:
            why = f"the logits of the model's {self.max_length} would take too much memory"
            said = f"texts are read in windows of {self.window} tokens, as {why}; max_length= takes another"
            warnings.warn(said, stacklevel=1)  # once for all passes
        windows = [(k, *window) for k, ids in enumerate(texts) for window in self.windows(ids, fill)]
        sums = np.zeros(len(texts))
        answers = self._loglikelihood_tokens([(None, *window) for _, *window in windows], sharing=False)
        if windows:
            np.add.at(sums, [k for k, *_ in windows], [total for total, _ in answers])
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """As in the harness; notes which items are truncated to leave room for the answer."""
        self.launcher.wait()  # no other has the model meanwhile
        self._read([request.args[0] for request in requests])
        inputs = []
        for request in requests:
            length, room = len(self.known[request.args[0], None]), self._room_before(request)
            self._note(request, length > room)
            inputs.append(SimpleNamespace(args=request.args, length=length))
        asked, mine, (most,) = self._of_all(inputs, self.most or math.inf)
        self._expect(len(asked))
        longest = max(self.max_length + min(one.length - self._room_before(one), 0) for one in asked)
        rows = max(1, _GENERATED // longest) if math.isinf(most) else int(most)
        return self._generated(asked, rows)[mine]

    def _room_before(self, request: Any) -> int:
        """Return how many tokens of its prompt are read."""
        return int(self.max_length) - self.answer_length(request.args[1])

    def _generated(self, requests: list[Any], rows: int) -> list[str]:
        """Generate batch after batch as the harness gathers them, each by one of the processes there are."""

        def longest_first(request: Any) -> tuple[int, str]:
            return -request.length, request.args[0]

        collator = Collator(requests, longest_first, lambda request: request.args[1], group_by="gen_kwargs")
        batches: list[Any] = list(collator.get_batched(n=rows))
        owners = shares([sum(request.length for request in some) for some in batches])
        mine = [k for k, owner in enumerate(owners) if owner == place()[0]]
        parts = everyones({k: self._in_halves(batches[k]) for k in mine})
        found = {k: texts for part in parts for k, texts in part.items()}
        texts: list[str] = collator.get_original([text for k in range(len(batches)) for text in found[k]])
        return texts

    def _in_halves(self, requests: list[Any]) -> Any:
        """Generate one batch, in halves where memory does not suffice."""
        self.batch_size_per_gpu = rows = min(self.most or len(requests), len(requests))
        try:
            return super().generate_until(requests, disable_tqdm=True)
        except torch.OutOfMemoryError as error:
            self.take_less(rows, error)
        return self._in_halves(requests)

    def take_less(self, rows: int, error: BaseException) -> None:
        """Take half as many prompts at once from now on.

        Raises:
            ValueError: when it was one.
        """
        if rows == 1:
            raise ValueError(f"max_length must be below {self.max_length} to fit into memory") from error
        self.most = rows // 2
        warnings.warn(f"{rows} prompts do not fit into memory; now {self.most}", stacklevel=2)
        gc.unfreeze()  # what an evaluation lets the collector pass over may hold a model that nobody wants
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def answer_length(self, settings: dict[str, Any] | None) -> int:
        """Return how many tokens a task generates with these settings."""
        return int(normalize_gen_kwargs(dict(settings or {}), self.max_gen_toks)["max_gen_toks"])

    def _model_generate(self, context: torch.Tensor, *args: Any, **settings: Any) -> Any:
        if not args and (ends := self._plain_ends(context.shape[0], settings)):
            decoder = StaticDecoder(self.model, ends=ends, pad=self.tokenizer.pad_token_id)
            pairs = zip(context, settings["attention_mask"].bool(), strict=True)
            prompts = [row[seen].tolist() for row, seen in pairs]
            with decoder.ready():
                new = decoder(prompts, settings["max_length"] - context.shape[1])
            return torch.cat([context, torch.tensor(new)], dim=1)
        settings["logits_processor"] = LogitsProcessorList([self.checked])
        return super()._model_generate(context, *args, **settings)

    def _plain_ends(self, rows: int, settings: dict[str, Any]) -> list[int]:
        """Return the tokens that end greedy answers on a CPU, none where only ``generate`` will do."""
        if self.device.type != "cpu" or rows * settings["max_length"] < WORTH_PREPARING:
            return []
        asked, known = self.model.generation_config.to_diff_dict(), self.tokenizer.get_vocab()
        ends = {*end_tokens(self.model, self.tokenizer), *(known.get(text) for text in settings["stop"])}
        asked = {name for name, value in asked.items() if value and name[0] != "_"} | settings.keys()
        plain = asked <= _PLAIN and None not in ends
        plain = plain and not (settings.get("do_sample") or settings.get("temperature"))
        plain = plain and self.mixed_precision_dtype is None
        return sorted(ends) if plain and not why_not_static(self.model, self.max_length) else []

    def checked(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return logits that can be compared: in an argmax, the first of several that are no numbers wins."""
        if not torch.isfinite(logits.amax(-1)).all():
            raise self.not_finite(ids)
        return logits

    def not_finite(self, ids: torch.Tensor) -> ValueError:
        """Return the error of logits that are no numbers, which says where they begin."""
        return not_finite(self.model, ids=ids)

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
