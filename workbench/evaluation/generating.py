"""Answers that the harness lets a model write, batch after batch; on a CPU with a static cache."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.models.utils import Collator, normalize_gen_kwargs
from transformers import LogitsProcessorList

from workbench.evaluation.asking import Asking
from workbench.generation.decoder import StaticDecoder, why_not_static
from workbench.generation.engines import WORTH_PREPARING
from workbench.generation.prompts import end_tokens
from workbench.models.processes import everyones, place, shares

#: tokens of a batch that is generated where ``batch_size`` is "auto", prompts and answers
_GENERATED = 2**15
#: settings that a greedy answer by the static cache follows, or that change none; a model's own among them
_PLAIN = {"attention_mask", "stop", "max_length", "max_new_tokens", "do_sample", "temperature", "top_k"}
_PLAIN |= {"top_p", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}


class Generating(Asking):
    """A model that writes answers as the harness asks for them."""

    batch_size_per_gpu: Any  # the harness's own: a number or "auto"

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
