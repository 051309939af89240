"""Responses of a model to prompts: batched by length, in the order asked for, the same as one at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig

from workbench.bars import tqdm
from workbench.checks import check_writable, checked, one_of
from workbench.data.instructions import conversation
from workbench.data.texts import fingerprint
from workbench.digests import tokenizer_digest
from workbench.generation.decoder import Prompts
from workbench.generation.engines import ENGINES, by_length, decoder_of, in_halves
from workbench.generation.prompts import asked_ids, context_length, end_tokens, response_room, token_ids
from workbench.models.chat import render_chat
from workbench.models.identity import describe_model, in_common
from workbench.models.layers import of_its_positions
from workbench.models.processes import agree, by_the_first, everyones, failing_together, place, shares
from workbench.runs.files import locked
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


def generate_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str] | Prompts,
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
    not depend on its batch. Under ``accelerate launch`` the processes share the batches, and each gets all
    responses.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; needs no pad token.
        prompts: final texts, from ``chat_prompt`` or plain, or their tokens. Control tokens in a text are
            such (``respond`` takes what a data set says as text). A prompt that begins with BOS gets no
            second one.
        max_new_tokens: longest response, at least 1.
        batch_size: prompts a batch, at least 1; halved, with a warning, where memory does not suffice.
        progress: show a progress bar.
        temperature: 0 for greedy, above for sampling.
        seed: of the sampling.
        engine: ``"auto"`` takes ``"static"`` where the model can (see ``decoder.why_not_static``), else
            ``"transformers"``, that is ``model.generate``.
        out: journal that responses are added to batch by batch; a call that was killed goes on from it. It
            belongs to one model and tokenizer, its prompts and settings: with others it is refused, never
            mixed.
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
    asked = [one if isinstance(one, str) else row for one, row in zip(prompts, ids, strict=True)]
    options = {"batch_size": batch_size, "progress": progress, "engine": engine, "overwrite": overwrite}
    options |= {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    work = {"prompts": fingerprint(asked)}
    return pd.DataFrame(journaled_responses(model, tokenizer, ids, out, work, **options))


def journaled_responses(
    model: Any, tokenizer: Any, ids: Prompts, out: str | Path | None, work: dict[str, Any], **options: Any
) -> list[Response]:
    """Return the response to each prompt: from the journal, else generated and added to it batch by batch.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        ids: tokens of each prompt.
        out: the journal; None to keep nothing.
        work: what beside model, tokenizer and generation settings the journal belongs to.
        **options: of ``response_batches``, and ``overwrite``: begin ``out`` again when it belongs to other
            work.

    A journal belongs to one call: another that wants it waits, says so, and reads what is there then. The
    processes of a launcher share the batches, and each adds its own, a batch in one write; where a file
    system mixes two of them, their sums tell, and the next call makes them again.

    Raises:
        ValueError: for an ``out`` of other work.
    """
    overwrite = options.pop("overwrite", False)
    generation = {name: options[name] for name in ("max_new_tokens", "temperature", "seed")}
    header = {} if out is None else journal_header(model, tokenizer, work, generation)
    with nullcontext() if out is None or place()[0] else locked(out), failing_together():
        if place()[1] > 1:
            asked = {**work, **generation, "prompts": fingerprint(ids), "batch_size": options["batch_size"]}
            agree(**in_common(model, tokenizer), journal=out is not None, **asked)
        known = by_the_first(lambda: {} if out is None else _known(out, header, overwrite))
        journal = None if out is None else Journal(out, header)
        if out is not None and len(known) < len(ids):
            check_writable("out", Path(out))
        mine: dict[int, Response] = {}
        with closing(response_batches(model, tokenizer, ids, done=set(known), **options)) as batches:
            for batch in batches:
                fresh = [one for one in batch if one.prompt_index not in known]
                if journal:
                    journal.append([asdict(one) for one in fresh])
                mine |= {one.prompt_index: one for one in fresh}
        found = known | {index: one for some in everyones(mine) for index, one in some.items()}
    return [found[index] for index in range(len(ids))]


def journal_header(
    model: Any, tokenizer: Any, work: dict[str, Any], generation: dict[str, Any]
) -> dict[str, Any]:
    """Return what a journal of responses belongs to; the tokenizer reads prompts and writes responses."""
    made_by = {"model": describe_model(model), "tokenizer": tokenizer_digest(tokenizer)[:16]}
    return {**made_by, **work, "generation": generation}


def _known(out: str | Path, header: dict[str, Any], overwrite: bool) -> dict[int, Response]:
    """Return the responses in a journal, which is made when missing."""
    rows = Journal(out, header, overwrite=overwrite).rows()
    return {row["prompt_index"]: Response(**row) for row in rows}


def respond(
    model: Any, tokenizer: Any, asked: pd.DataFrame, *, max_new_tokens: int | None = 256, **settings: Any
) -> pd.DataFrame:
    """Answer what the rows of a frame ask, as ``generate_responses`` does.

    What the rows say is text, also where it spells a control token of the tokenizer.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        asked: frame with ``instruction``, and ``context`` and ``history`` where there are any, as of
            ``load_instructions``.
        max_new_tokens: longest response; None for ``response_room`` of the column ``reference``.
        **settings: of ``generate_responses``.

    Returns:
        The rows of ``asked`` with prompt (the final text), response, n_tokens and finished.

    Raises:
        ValueError: as ``generate_responses``, or for a field that is no text.
    """
    columns = ["instruction"] if max_new_tokens is not None else ["instruction", "reference"]
    rows = checked(asked, columns, "asked").reset_index(drop=True)
    ids = asked_ids(tokenizer, rows.drop(columns="prompt", errors="ignore"))
    if max_new_tokens is None:
        longest = max(map(len, ids))
        max_new_tokens = response_room(model, tokenizer, list(rows["reference"]), longest_prompt=longest)
    found = generate_responses(model, tokenizer, ids, max_new_tokens=max_new_tokens, **settings)
    rows = rows.drop(columns=found.columns, errors="ignore")
    rows = rows.assign(prompt=[render_chat(tokenizer, conversation(row)) for row in rows.to_dict("records")])
    return rows.join(found.drop(columns="prompt_index"))


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
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 (0 for greedy), got {temperature!r}")
    known, lengths = set(done), [len(row) for row in ids]
    todo = [batch for batch in by_length(lengths, batch_size) if not known.issuperset(batch)]
    if not todo:
        return
    settings = _settings(model, tokenizer, max_new_tokens)
    costs = [sum(lengths[index] + max_new_tokens for index in batch) for batch in todo]
    total, number = sum(costs), place()[0]
    hidden = not progress or number > 0
    todo = [batch for batch, owner in zip(todo, shares(costs), strict=True) if owner == number]
    sizes: dict[str, Any] = {"longest": max(lengths), "new": max_new_tokens, "total": total}
    bar = tqdm(total=sum(map(len, todo)), desc="generate", unit="prompt", disable=hidden)
    sizes["tell"] = lambda n: bar.say(f"token {n:,} of {max_new_tokens:,}")
    with bar, _own_settings(model, settings), decoder_of(engine, model, temperature, **sizes) as decode:
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


def _check_room(model: Any, ids: Prompts, max_new_tokens: int) -> None:
    context = context_length(model)
    if long := [i for i, row in enumerate(ids) if context and len(row) + max_new_tokens > context]:
        room = f"no room for max_new_tokens={max_new_tokens} in the context of {context} tokens"
        longest = f"the longest has {max(map(len, ids))}{of_its_positions(model.config)}"
        raise ValueError(f"prompts {_some(long)} leave {room}; {longest}")
    size = model.get_input_embeddings().num_embeddings
    if beyond := [i for i, row in enumerate(ids) if not 0 <= min(row) <= max(row) < size]:
        raise ValueError(f"prompts {_some(beyond)} have tokens outside the model's vocabulary of {size}")


def _some(indices: list[int]) -> str:
    more = f" and {len(indices) - 8} more" if len(indices) > 8 else ""
    return ", ".join(map(str, indices[:8])) + more


def _settings(model: Any, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    ends = end_tokens(model, tokenizer)
    known = [tokenizer.pad_token_id, *ends, 0]  # a pad token may be one that the model has no embedding for
    pad = next(i for i in known if i is not None and i < model.get_input_embeddings().num_embeddings)
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
