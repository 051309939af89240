"""Which model a result came from: its name, its kept layers, and a digest of what it computes with."""

from __future__ import annotations

from typing import Any

from torch import nn

from workbench.digests import digest, model_digests, model_look, tokenizer_look
from workbench.models.layers import kept_layers, number_of_layers, unwrap
from workbench.places import short_name


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return what a result's provenance has to say of a model, as plain JSON values.

    `weights` follows every element of every parameter and buffer in memory, adapters included, and `settings`
    every entry of the configuration, the class and numbers of each module, and hooks: they change when the
    model is trained, merged, edited or exchanged, also where name and revision stay the same. Tensors are
    read once; see `workbench.digests.weights_digest`.

    Returns:
        id, revision, architecture, dtype, n_layers, kept_layers (original indices), weights and settings (16
        hex digits each).
    """
    base = unwrap(model)
    source = getattr(base, "_source", {})
    weights, *settings = model_digests(base).values()
    return {
        "id": source.get("id") or short_name(base.config._name_or_path or type(base).__name__),
        "revision": source.get("revision"),
        "architecture": type(base).__name__,
        "dtype": str(base.dtype).removeprefix("torch."),
        "n_layers": number_of_layers(base),
        "kept_layers": list(kept_layers(base)),
        "weights": weights[:16],
        "settings": digest(settings)[:16],
    }


def in_common(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """Return what is the same in all processes that hold the same model and tokenizer, read in no time.

    A model's name is left out, as it may hang on where it lies.
    """
    base = unwrap(model)
    return {"model": [list(kept_layers(base)), model_look(base)], "tokenizer": tokenizer_look(tokenizer)}
