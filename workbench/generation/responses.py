"""Responses of a model to prompts: batched by length, in the order asked for, the same as one at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig

from workbench.checks import one_of, whole_number
from workbench.data.instructions import user_message
from workbench.data.texts import fingerprint
from workbench.generation.decoder import Prompts
from workbench.generation.engines import ENGINES, by_length, decoder_of, in_halves
from workbench.models.chat import render_chat
from workbench.models.identity import describe_model
from workbench.models.templates import PLAIN_PROMPT as PLAIN_PROMPT
from workbench.runs.journal import Journal


@dataclass(frozen=True)
class Response:
    """What a model said to one prompt.

    Attributes:
        prompt_index: place of the prompt in the list that was asked.
        response: the text, special tokens left out.
        n_tokens: tokens of the response, EOS not counted.
        finished: whether it ended with EOS; False when ``max_new_tokens`` cut it off.
    """

    prompt_index: int
    response: str
    n_tokens: int
    finished: bool


def chat_prompt(tokenizer: Any, text: str) -> str:
    """Return the prompt for a user message: by the chat template, or ``PLAIN_PROMPT`` without one."""
    return render_chat(tokenizer, [{"role": "user", "content": text}])


def generate_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 256,
    batch_size: int = 64,
    progress: bool = True,
    temperature: float = 0.0,
    seed: int = 0,
    engine: str = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Generate a response to every prompt, batched by length with left padding.

    Greedy by default; in float32 the responses equal those of one prompt at a time. The model's own
    sampling settings (repetition penalty, top-p) are left out, so that greedy is the argmax for every
    model. With a temperature each prompt is sampled with random numbers of its own, so its response does
    not depend on its batch.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; needs no pad token.
        prompts: final texts, from ``chat_prompt`` or plain. A prompt that begins with BOS gets no second
            one.
        max_new_tokens: longest response, at least 1.
        batch_size: prompts a batch, at least 1; halved, with a warning, where memory does not suffice.
        progress: show a progress bar.
        temperature: 0 for greedy, above for sampling.
        seed: of the sampling.
        engine: ``"auto"`` takes ``"static"`` where the model can (see ``decoder.why_not_static``), else
            ``"transformers"``, that is ``model.generate``.
        out: journal that responses are added to batch by batch; a call that was killed goes on from it. It
            belongs to one model, its prompts and settings: with others it is refused, never mixed.
        overwrite: begin ``out`` again when it belongs to other work.

    Returns:
        Frame with prompt_index, response, n_tokens (EOS not counted), finished (False when cut off), in the
        order of the prompts.

    Raises:
        ValueError: for no prompts, an empty prompt, prompts that leave no room for the response in the
            context, or an ``out`` of other work.
    """
    ids = token_ids(tokenizer, prompts)
    _check_room(model, ids, max_new_tokens)
    work = {"prompts": fingerprint(list(prompts))}
    options = {"batch_size": batch_size, "progress": progress, "engine": engine, "overwrite": overwrite}
    options |= {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    return pd.DataFrame(map(asdict, journaled_responses(model, tokenizer, ids, out, work, **options)))


def journaled_responses(
    model: Any, tokenizer: Any, ids: Prompts, out: str | Path | None, work: dict[str, Any], **options: Any
) -> list[Response]:
    """Return the response to each prompt: from the journal, else generated and added to it batch by batch.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        ids: tokens of each prompt.
        out: the journal; None to keep nothing.
        work: what beside model and generation settings the journal belongs to.
        **options: of ``response_batches``, and ``overwrite``: begin ``out`` again when it belongs to other
            work.

    Raises:
        ValueError: for an ``out`` of other work.
    """
    journal, found, overwrite = None, {}, options.pop("overwrite", False)
    if out is not None:
        generation = {name: options[name] for name in ("max_new_tokens", "temperature", "seed")}
        header = {"model": describe_model(model), **work, "generation": generation}
        journal = Journal(out, header, overwrite=overwrite)
        found = {row["prompt_index"]: Response(**row) for row in journal.rows()}
    with closing(response_batches(model, tokenizer, ids, done=set(found), **options)) as batches:
        for batch in batches:
            fresh = [one for one in batch if one.prompt_index not in found]
            if journal:
                journal.append([asdict(one) for one in fresh])
            found |= {one.prompt_index: one for one in fresh}
    return [found[index] for index in range(len(ids))]


def respond(model: Any, tokenizer: Any, asked: pd.DataFrame, **settings: Any) -> pd.DataFrame:
    """Answer what the rows of a frame ask, as ``generate_responses`` does.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        asked: frame with ``instruction``, and ``context`` where there is one, as of ``load_instructions``.
        **settings: of ``generate_responses``.

    Returns:
        The rows of ``asked`` with prompt (the final text), response, n_tokens and finished.

    Raises:
        ValueError: as ``generate_responses``.
    """
    contexts = asked["context"] if "context" in asked else [""] * len(asked)
    pairs = zip(asked["instruction"], contexts, strict=True)
    prompts = [chat_prompt(tokenizer, user_message(*pair)) for pair in pairs]
    found = generate_responses(model, tokenizer, prompts, **settings)
    rows = asked.reset_index(drop=True).assign(prompt=prompts)
    return rows.join(found.drop(columns="prompt_index"))


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each prompt, with BOS once where the tokenizer has it, without EOS.

    Raises:
        ValueError: for no prompts, or one that is empty.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
    empty = [i for i, prompt in enumerate(prompts) if not isinstance(prompt, str) or not prompt.strip()]
    if empty:
        raise ValueError(f"prompts must be texts that are not empty; {_some(empty)} of {len(prompts)} are")
    return [_prompt_ids(tokenizer, prompt) for prompt in prompts]


def context_length(model: Any) -> int | None:
    """Return how many tokens the model has positions for, None when its configuration sets no limit."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end a response: those of the model's generation settings and the tokenizer's."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ids = own if isinstance(own, list) else [own]
    return sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})


def response_batches(
    model: Any,
    tokenizer: Any,
    ids: Prompts,
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: bool = True,
    temperature: float = 0.0,
    seed: int = 0,
    done: Collection[int] = (),
    engine: str = "auto",
) -> Generator[list[Response], None, None]:
    """Yield the responses of one batch after the other, longest prompts first.

    Which prompts share a batch follows from all of ``ids``, whatever is ``done``: work that goes on after a
    stop computes exactly what it would have computed without one.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        ids: tokens of each prompt.
        max_new_tokens: longest response.
        batch_size: prompts a batch.
        progress: show a progress bar.
        temperature: 0 for greedy.
        seed: of the sampling; each prompt is sampled by (seed, its index).
        done: indices whose response is known; a batch of nothing else is passed over.
        engine: one of ``ENGINES``.

    Raises:
        ValueError: for a setting out of range, or an engine that cannot run this model.
    """
    one_of(engine, ENGINES, "engine")
    whole_number(max_new_tokens, "max_new_tokens")
    whole_number(batch_size, "batch_size")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 (0 for greedy), got {temperature!r}")
    known, lengths = set(done), [len(row) for row in ids]
    todo = [batch for batch in by_length(lengths, batch_size) if not known.issuperset(batch)]
    if not todo:
        return
    settings = _settings(model, tokenizer, max_new_tokens)
    total = sum(lengths[index] + max_new_tokens for batch in todo for index in batch)
    sizes = {"longest": max(lengths), "new": max_new_tokens, "total": total}
    with (
        _own_settings(model, settings),
        decoder_of(engine, model, temperature, **sizes) as decode,
        tqdm(total=sum(map(len, todo)), desc="generate", unit="prompt", disable=not progress) as bar,
    ):
        started, tokens = time.perf_counter(), 0
        for batch in todo:
            uniforms = _uniforms(batch, seed, max_new_tokens) if temperature else None
            rows = in_halves(decode, [ids[i] for i in batch], uniforms)
            ends = set(settings.eos_token_id or ())
            found = [_response(tokenizer, index, new, ends) for index, new in zip(batch, rows, strict=True)]
            tokens += sum(one.n_tokens for one in found)
            bar.update(len(batch))
            bar.set_postfix_str(f"{tokens / (time.perf_counter() - started):,.0f} new tokens/s")
            yield found


def _response(tokenizer: Any, index: int, tokens: list[int], ends: set[int]) -> Response:
    end = next((k for k, token in enumerate(tokens) if token in ends), None)
    kept = tokens[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Response(index, text, len(kept), end is not None)


def _prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    begin = tokenizer.bos_token
    add = not (begin and prompt.startswith(begin))  # chat templates write it themselves
    ids: list[int] = tokenizer(prompt, add_special_tokens=add)["input_ids"]
    if add and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        ids = ids[:-1]  # a tokenizer that closes every text would end the response before it begins
    return ids


def _check_room(model: Any, ids: Prompts, max_new_tokens: int) -> None:
    context, longest = context_length(model), max(map(len, ids))
    if context is not None and longest + max_new_tokens > context:
        long = [i for i, row in enumerate(ids) if len(row) + max_new_tokens > context]
        raise ValueError(
            f"prompts {_some(long)} leave no room for max_new_tokens={max_new_tokens} in the context of "
            f"{context} tokens (the longest prompt has {longest}); "
            f"shorten them or take max_new_tokens <= {context - longest}"
        )


def _some(indices: list[int]) -> str:
    more = f" and {len(indices) - 8} more" if len(indices) > 8 else ""
    return ", ".join(map(str, indices[:8])) + more


def _settings(model: Any, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    special = {"eos_token_id": ends or None, "pad_token_id": pad}
    return GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **special)


@contextmanager
def _own_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Let the model generate by these settings alone: generate() fills gaps from the model's own."""
    with ExitStack() as stack:
        stack.callback(setattr, model, "generation_config", model.generation_config)
        stack.callback(model.train, model.training)
        model.generation_config = settings
        model.eval()
        yield


def _uniforms(indices: list[int], seed: int, max_new_tokens: int) -> torch.Tensor:
    """Return one uniform number a row and step, each row by a generator of its own."""
    rows = [np.random.default_rng([seed, index]).random(max_new_tokens) for index in indices]
    return torch.from_numpy(np.stack(rows))
