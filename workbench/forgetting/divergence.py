"""How far a variant's next-token distribution leaves the base's, at each token of the base's responses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from workbench.bars import tqdm
from workbench.checks import checked
from workbench.distances.sweep import Replay
from workbench.forgetting.similarity import checked_responses, finished
from workbench.generation.prompts import context_length, end_tokens, token_ids
from workbench.healing.adapters import as_variant
from workbench.models.batches import Batch, make_batches, read_tokens
from workbench.models.hooks import any_shape, inference, not_finite, watch_states
from workbench.models.layers import decoder_forward, number_of_layers, unwrap
from workbench.runs.run import Run
from workbench.runs.variant import Variant

#: most logits of one model made at once (512 MiB in float32)
LOGITS = 2**27


def token_divergence(
    model: nn.Module,
    tokenizer: Any,
    responses: pd.DataFrame,
    variants: Iterable[Variant],
    *,
    run: Run | str | None = None,
    max_tokens: int = 4096,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure KL(base || variant) of the next token at every token of the base's own responses.

    Teacher-forced on the text: the response as it is stored is tokenised again, which need not give the very
    tokens that were generated (special tokens are not in the text; a tokenizer may cut it otherwise). What is
    compared holds for these tokens. ``attrs["tokenised_again"]`` counts the ``responses`` and those of them
    with ``other_lengths`` than were generated (``n_tokens``; None where the responses do not say it).

    Every variant reads the same prompt and the same response, so position ``t`` compares what
    the two would say next after the same words. The model is loaded once and seen as each variant in turn;
    of the base only the last states are kept (width numbers a token), from which its logits are made again
    batch by batch by its own norm and head.

    Args:
        model: the whole model; unchanged afterwards.
        tokenizer: its tokenizer.
        responses: the base's: ``id``, ``prompt`` (the final text that was answered), ``response``, and
            ``finished`` and ``n_tokens`` where known; a finished response ends with EOS, which is compared
            too.
        variants: to compare with the model, such as ``run.variants()``.
        run: the run, or its folder, that the adapters' paths are relative to.
        max_tokens: most tokens in a batch, padding included; fewer where the vocabulary is large.
        progress: show a progress bar.

    Returns:
        One row a variant and token, in the order of the responses: variant, id, position (0 = first token of
        the response), token (its text), kl (nats, at least 0; log-softmax in float32), base_logprob and
        logprob (of this token, nats), same_choice (both models would choose the same token greedily).

    Raises:
        ValueError: before the first forward pass, for missing columns, no rows, an id that occurs twice, a
            response without any token, a text longer than the context, no variant, or an adapter that was
            trained on other layers.
    """
    variants = _checked_variants(model, variants, run)
    prompts, texts, answers = _tokens(model, tokenizer, responses)
    whole = read_tokens(model, None, [a + b for a, b in zip(prompts, answers, strict=True)], 10**9)
    vocabulary = unwrap(model).get_input_embeddings().weight.shape[0]
    room = max(1, min(max_tokens, LOGITS // vocabulary))
    batches = make_batches(whole, max_tokens=room, model=model)
    starts = [len(prompt) for prompt in prompts]
    ids, pieces = list(responses["id"]), [token_texts(tokenizer, answer) for answer in answers]
    frames = []
    with (
        inference(model),
        any_shape(),
        tqdm(total=len(batches) * (1 + len(variants)), disable=not progress) as bar,
    ):
        bar.set_description("divergence")
        states = [_last_states(model, batch, bar) for batch in batches]
        for variant in variants:
            with as_variant(model, variant, run=run):
                found = _compared(model, batches, states, starts, bar)
            frames += [_rows(variant.name, *one) for one in zip(ids, pieces, found, strict=True)]
    result = pd.concat(frames, ignore_index=True)
    lengths = zip(map(len, texts), responses["n_tokens"], strict=True) if "n_tokens" in responses else None
    others = None if lengths is None else sum(int(now != then) for now, then in lengths)
    result.attrs["tokenised_again"] = {"responses": len(ids), "other_lengths": others}
    return result


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return each token's own part of the text, special tokens by name; joined they are the whole text.

    A character that several tokens make together is the last one's; the others before it are empty.
    """
    texts, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(done) :] if text.startswith(done) else tokenizer.decode(ids[end - 1 : end]))
        done = text
    return texts


def _tokens(model: Any, tokenizer: Any, responses: pd.DataFrame) -> tuple[list[list[int]], ...]:
    """Return the tokens of prompts, of responses, and of these with the EOS of finished ones."""
    checked_responses(responses, "responses", "prompt")
    prompts = token_ids(tokenizer, list(responses["prompt"]))
    ends = end_tokens(model, tokenizer)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else next(iter(ends), None)
    settings = {"add_special_tokens": False, "verbose": False}
    texts = [tokenizer(text, **settings)["input_ids"] for text in responses["response"]]
    closed = zip(texts, finished(responses), strict=True)
    answers = [text + [end] * bool(done and end is not None) for text, done in closed]
    limit = context_length(model)
    for id_, prompt, answer in zip(responses["id"], prompts, answers, strict=True):
        if not answer:
            raise ValueError(f"responses must have at least one token each; that of id {id_!r} has none")
        if limit is not None and len(prompt) + len(answer) > limit:
            got = f"id {id_!r} has {len(prompt)} + {len(answer)}"
            raise ValueError(f"responses and prompts must fit into the model's {limit} tokens; {got}")
    return prompts, texts, answers


def _checked_variants(model: nn.Module, variants: Iterable[Variant], run: Any) -> list[Variant]:
    """Return the variants after a check that the model can be seen as each."""
    variants = list(variants)
    checked(pd.DataFrame({"name": [variant.name for variant in variants]}), [], "variants", unique="name")
    for variant in variants:
        with as_variant(model, variant, run=run):
            pass
    return variants


def _last_states(model: Any, batch: Batch, bar: Any) -> Tensor:
    """Return ``h[L]`` of a batch, ``[row, token, width]``, on the CPU in the model's own precision."""
    kept: list[Tensor] = []
    last = number_of_layers(model)
    with watch_states(model, lambda number, state: kept.append(state.cpu()) if number == last else None):
        decoder_forward(model)(input_ids=batch.on_device_of(model)[0], use_cache=False)
    bar.update()
    return kept[0]


def _compared(
    model: Any, batches: list[Batch], states: list[Tensor], starts: list[int], bar: Any
) -> list[np.ndarray]:
    """Return ``[4, token]`` for each text: kl, both log-probabilities of its token, same choice."""
    found: dict[int, np.ndarray] = {}
    for batch, base_states in zip(batches, states, strict=True):
        ids, _ = batch.on_device_of(model)
        replay = Replay(model, ids, max_tokens=ids.numel())
        base = replay.logits(base_states.to(ids.device))
        other = model(input_ids=ids, use_cache=False).logits
        for row, text in enumerate(batch.texts):
            end = int(batch.mask[row].sum())
            part = slice(starts[text] - 1, end - 1)  # the logits at t say what comes at t + 1
            if not (base[row, part].amax(-1).isfinite().all() and other[row, part].amax(-1).isfinite().all()):
                raise not_finite(model)
            found[text] = _one_text(base[row, part], other[row, part], ids[row, starts[text] : end])
        bar.update()
    return [found[text] for text in range(len(starts))]


def _one_text(base: Tensor, other: Tensor, targets: Tensor) -> np.ndarray:
    logp, logq = (logits.float().log_softmax(dim=-1) for logits in (base, other.to(base.device)))
    # a token that the base rules out adds nothing, and must not add -inf - -inf
    terms = torch.where(logp > -torch.inf, logp.exp() * (logp - logq), 0.0)
    kl = terms.sum(dim=-1).clamp_min(0.0)
    own = [log.gather(-1, targets[:, None])[:, 0] for log in (logp, logq)]
    same = (logp.argmax(dim=-1) == logq.argmax(dim=-1)).float()
    return torch.stack([kl, *own, same]).double().cpu().numpy()


def _rows(variant: str, id_: Any, pieces: list[str], found: np.ndarray) -> pd.DataFrame:
    place = {"variant": variant, "id": id_, "position": np.arange(len(pieces)), "token": pieces}
    measured = dict(zip(("kl", "base_logprob", "logprob", "same_choice"), found, strict=True))
    return pd.DataFrame({**place, **measured}).astype({"same_choice": bool})
