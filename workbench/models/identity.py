"""Which model a result came from: its name, its kept layers, and a digest of what it computes with."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from workbench.models.layers import (
    kept_layers,
    number_of_layers,
    unwrap,
)
from workbench.places import short_name

_SAMPLES_PER_TENSOR = 64


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return what a result's provenance has to say of a model, as plain JSON values.

    `weights` is a fingerprint of the parameters in memory (a sample of each tensor, adapters included): it
    changes when the model is trained, merged or exchanged, also where name and revision stay the same.

    Returns:
        id, revision, architecture, dtype, n_layers, kept_layers (original indices), weights.
    """
    base = unwrap(model)
    source = getattr(base, "_source", None) or {
        "id": short_name(base.config._name_or_path or type(base).__name__)
    }
    return {
        "id": source["id"],
        "revision": source.get("revision"),
        "architecture": type(base).__name__,
        "dtype": str(base.dtype).removeprefix("torch."),
        "n_layers": number_of_layers(base),
        "kept_layers": list(kept_layers(base)),
        "weights": _fingerprint(base),
    }


@torch.no_grad()
def _fingerprint(model: nn.Module) -> str | None:
    parameters = sorted(model.named_parameters())
    if any(parameter.is_meta for _, parameter in parameters):
        return None
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
    samples = [p.detach().flatten()[:: max(1, p.numel() // _SAMPLES_PER_TENSOR)] for _, p in parameters]
    kinds = [(str(sample.device), str(sample.dtype)) for sample in samples]
    for kind in sorted(set(kinds)):  # one copy for all: hundreds of small ones would cost milliseconds
        values = torch.cat([sample for sample, its in zip(samples, kinds, strict=True) if its == kind])
        digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
