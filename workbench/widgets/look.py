"""Look before you cut: loss and an answer with and without a block, safe while the notebook works on.

A look runs in a thread of its own, while cells may use, prune or train the model. So it never touches that
model: it works on a *view*, a second tree of modules around the very same weight tensors.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pandas as pd
from torch import nn

from workbench.digests import model_digests
from workbench.distances.damage import block_damage
from workbench.generation.responses import respond
from workbench.models.layers import decoder_layers
from workbench.pruning.removal import without_layers


class Cancelled(Exception):
    """A look that nobody waits for any more."""


def looking(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    prompt: str,
    *,
    max_length: int = 512,
    max_new_tokens: int = 64,
) -> Callable[[Iterable[int], Callable[[], bool]], dict[str, Any] | None]:
    """Return what ``BlockPicker.look_with`` takes: a function that looks at the model without some layers.

    The model is read as it is now, in this call: what is done to it later (pruning, an adapter) is not seen,
    while weights that are trained in place are. The function may be called from any thread; two looks wait
    for each other.

    Args:
        model: a decoder-only transformers model; not changed, its weights not copied.
        tokenizer: its tokenizer.
        texts: held-out texts for the loss, of at least two tokens each; a few dozen are enough for a look.
        prompt: user message that both models answer, greedily, through the chat template where there is one.
        max_length: most tokens read of a text.
        max_new_tokens: length of the two answers.

    Returns:
        ``look(layers, cancelled)``, which returns a dict (see ``look``), or None once ``cancelled()`` is
        true. Its ``identity()`` tells which weights are looked at, so that nothing seen of others is shown.
    """
    view, tokens = shared_view(model), copy.deepcopy(tokenizer)  # a fast tokenizer must not serve two threads
    limits = {"max_length": max_length, "max_new_tokens": max_new_tokens}
    alone = threading.Lock()
    answers: dict[str, str] = {}  # of the whole model, by its weights

    def identity() -> str:
        return model_digests(view)["weights"]

    def look_at(layers: Iterable[int], cancelled: Callable[[], bool]) -> dict[str, Any] | None:
        with alone:
            now = identity()
            try:
                with _stopping(view, cancelled):
                    found = look(view, tokens, texts, prompt, layers, base_text=answers.get(now), **limits)
            except Cancelled:
                return None
        answers[now] = found["base_text"]
        return found

    look_at.identity = identity  # type: ignore[attr-defined]
    return look_at


def look(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    prompt: str,
    layers: Iterable[int],
    *,
    base_text: str | None = None,
    max_length: int = 512,
    max_new_tokens: int = 64,
) -> dict[str, Any]:
    """Compare the model with itself without some layers: held-out loss, and the answer to a prompt.

    While this runs the model lacks its layers, so nothing else may use it; ``looking`` takes care of that.

    Args:
        model: a decoder-only transformers model; whole again afterwards.
        tokenizer: its tokenizer.
        texts: held-out texts for the loss.
        prompt: user message to answer.
        layers: original indices of the layers to leave out.
        base_text: the whole model's answer, when known; None generates it.
        max_length: most tokens read of a text.
        max_new_tokens: length of an answer.

    Returns:
        ``base_loss``, ``loss`` (nats per token, as ``block_damage`` gives them), the interval of what the
        second adds to the first as ``added_low``, ``added_high`` where there is one, ``n_texts``, ``prompt``,
        ``base_text``, ``text``.

    Raises:
        ValueError: for layers that the model does not have, and as ``block_damage`` and ``respond``.
    """
    layers = sorted(layers)
    damage = block_damage(model, tokenizer, texts, layer_sets=[layers], max_length=max_length, progress=False)
    if base_text is None:
        base_text = _answer(model, tokenizer, prompt, max_new_tokens)
    with without_layers(model, layers):
        text = _answer(model, tokenizer, prompt, max_new_tokens)
    row = damage.iloc[0].astype(object)
    losses = {name: float(row[name]) for name in ("base_loss", "loss")}
    interval = {f"added_{end}": float(row[f"ci_{end}"]) for end in ("low", "high")}
    more = {name: value for name, value in interval.items() if value == value} | {"n_texts": len(texts)}
    return {**losses, **more, "prompt": prompt, "base_text": base_text, "text": text}


def shared_view(model: nn.Module) -> nn.Module:
    """Return a second model around the same weights: its layers can go without the first one noticing.

    Modules, configuration and hooks are copied, parameters and buffers are not.
    """
    tensors = [*model.parameters(), *model.buffers()]
    # the scales of a bitsandbytes weight
    states = [tensor.quant_state for tensor in tensors if hasattr(tensor, "quant_state")]
    return copy.deepcopy(model, {id(one): one for one in (*tensors, *states)}).eval()


def _answer(model: nn.Module, tokenizer: Any, prompt: str, max_new_tokens: int) -> str:
    asked = pd.DataFrame({"instruction": [prompt]})
    found = respond(model, tokenizer, asked, max_new_tokens=max_new_tokens, progress=False)
    return str(found["response"].item())


@contextmanager
def _stopping(model: nn.Module, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Raise Cancelled from the next layer that runs once ``cancelled()`` is true."""

    def check(module: nn.Module, inputs: Any) -> None:
        if cancelled():
            raise Cancelled

    with ExitStack() as hooks:
        for layer in decoder_layers(model):
            hooks.callback(layer.register_forward_pre_hook(check).remove)
        yield
