"""Log-likelihoods by a model in memory, as the lm-evaluation-harness asks for them."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np

from workbench.evaluation.answers import Answers, Pending, end
from workbench.evaluation.generating import Generating
from workbench.evaluation.layout import Batch, plan
from workbench.evaluation.prefixes import can_share, least_saved, room_for
from workbench.models.processes import everyones, place, shares

#: logits that exist at once: places x vocabulary (1 GiB in bfloat16, and their softmax)
_LOGITS = 2**29
#: requests that are read between two looks whether a GPU has enough to do
_READ = 64


class InMemory(Generating):
    """The harness's Hugging Face model around a model object, as it is asked.

    What is asked ahead is read, told to the other processes and laid out at once; a thread then gives it to
    a GPU, batch after batch.

    Attributes:
        ahead: what was begun, with what will answer it.
        loads: of each process, by what was begun.
        pending: what a GPU was given, oldest first.
        launched: the last pass that a GPU has been given whole.
    """

    def __init__(self, model: Any, tokenizer: Any, **settings: Any) -> None:
        """Put the harness around a model; ``settings`` are those of ``Asking``."""
        super().__init__(model, tokenizer, **settings)
        self.ahead: list[tuple[list[Any], Answers, slice]] = []
        self.loads = [0.0] * place()[1]
        self.pending: deque[Pending] = deque()
        self.launched: Pending | None = None

    def _busy(self) -> bool:
        copied = self.launched and self.launched.copied
        return copied is not None and not copied.query()

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
