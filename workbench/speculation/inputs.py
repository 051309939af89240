"""What drafting is asked for: prompts, drafts and settings, read and checked before any model runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from workbench.checks import whole_number
from workbench.generation.decoder import Prompts
from workbench.generation.prompts import context_length, token_ids
from workbench.models.hooks import inference
from workbench.models.layers import number_of_layers, unwrap
from workbench.pruning.removal import check_prunable
from workbench.runs.variant import Variant
from workbench.speculation.views import draft_view

#: below it the logits overflow
_COLDEST = 1e-4


@dataclass(frozen=True)
class Asked:
    """Prompts as tokens, with the kind of each."""

    ids: Prompts
    kinds: Sequence[str]


def read_prompts(model: Any, tokenizer: Any, prompts: Any, room: int) -> Asked:
    """Return prompts as tokens, once they are found to fit.

    Raises:
        ValueError: for none, an empty one, or no room for the response in the context.
    """
    if tokenizer is None:
        raise ValueError("tokenizer must be given for prompts, got None")
    sets = prompts if isinstance(prompts, Mapping) else {"": prompts}
    ids = [row for texts in sets.values() for row in token_ids(tokenizer, texts)]
    kinds = [str(kind) for kind, texts in sets.items() for _ in texts]
    if not ids:
        raise ValueError("prompts must hold at least one text, got none")
    if (most := max(map(max, ids))) >= (size := _vocabulary(model)):
        raise ValueError(
            f"token ids must be between 0 and {size - 1}, prompts have {most}: another tokenizer's"
        )
    longest, context = max(map(len, ids)), context_length(model)
    if context is not None and longest + room > context:
        raise ValueError(
            f"prompts leave no room for max_new_tokens={room} in the context of {context} tokens (the "
            f"longest has {longest}); shorten them or take max_new_tokens <= {context - longest}"
        )
    return Asked(ids, kinds)


def check_sampling(temperature: Any, sampling: Mapping[str, Any]) -> None:
    """Refuse what the rejection rule does not know.

    Raises:
        ValueError: for a setting besides the temperature, or one out of range.
    """
    if sampling:
        raise ValueError(
            f"sampling must be by temperature alone, got {', '.join(sorted(sampling))}: target and draft "
            "would have to be cut alike for the output to stay the target's"
        )
    if isinstance(temperature, bool) or not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 (0 for greedy), got {temperature!r}")
    if 0 < temperature < _COLDEST:
        raise ValueError(f"temperature must be 0 or at least {_COLDEST:g}, got {temperature!r}")


def checked_lengths(draft_lengths: Iterable[int]) -> list[int]:
    """Return draft lengths in order.

    Raises:
        ValueError: for none, or one below 1.
    """
    lengths = sorted({whole_number(k, "draft_lengths") for k in draft_lengths})
    if not lengths:
        raise ValueError("draft_lengths must hold at least one whole number, got none")
    return lengths


@contextmanager
def opened(model: Any, name: str, draft: Any, run: Any) -> Iterator[Any]:
    """Give a draft as a model.

    Raises:
        ValueError: as ``draft_view``.
    """
    if isinstance(draft, Variant):
        with draft_view(model, draft, run=run) as view:
            check_finite(view, f"draft {name!r}")
            yield view
        return
    yield draft


def checked_drafts(model: Any, drafts: Any) -> dict[str, Any]:
    """Return drafts by their names, once all are found to fit their target, before any is run.

    Raises:
        ValueError: for none, another vocabulary, more layers than the target has, layers that it has not,
            weights that are not finite.
    """
    named = dict(drafts) if isinstance(drafts, Mapping) else {one.name: one for one in drafts}
    if not named or len(named) < len(drafts):
        raise ValueError(f"drafts must be at least one, with different names, got {len(drafts)}")
    for name, one in named.items():
        if not isinstance(one, Variant) and not hasattr(one, "get_output_embeddings"):
            raise ValueError(f"draft {name!r} must be a Variant or a language model, got {one!r:.80}")
    check_finite(model, "the target")
    for name, draft in named.items():
        if isinstance(draft, Variant):
            check_prunable(model, draft.removed)
        else:
            _check_fits(model, name, draft)
            check_finite(draft, f"draft {name!r}")
    return named


def check_finite(model: Any, what: str) -> None:
    """Refuse a model whose logits are not finite, by one short pass.

    Raises:
        ValueError: for NaN or infinite logits.
    """
    ids = torch.arange(3, 11, device=unwrap(model).device)[None] % _vocabulary(model)
    with inference(model), torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise ValueError(f"logits must be finite, {what} has NaN or infinite ones: look at its weights")


def _check_fits(model: Any, name: str, draft: Any) -> None:
    sizes = [one.get_output_embeddings().weight.shape[0] for one in (unwrap(draft), unwrap(model))]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"draft {name!r} must have the target's vocabulary of {sizes[1]} tokens, it has {sizes[0]}"
        )
    depths = [number_of_layers(one) for one in (draft, model)]
    if depths[0] > depths[1]:
        raise ValueError(
            f"draft {name!r} must not be deeper than its target: {depths[0]} and {depths[1]} layers"
        )


def _vocabulary(model: Any) -> int:
    return int(unwrap(model).get_input_embeddings().weight.shape[0])
