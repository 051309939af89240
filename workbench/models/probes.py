"""What a few tokens tell of a model: whether padding reaches its states, what its states look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from workbench.models.hooks import inference, watch_states
from workbench.models.layers import decoder_forward, unwrap

#: tokens of a text that a probe reads
PROBE = 24
_felt: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()


def input_device(model: Any) -> Any:
    """Return where the model takes its input: where it runs, for weights that wait on the CPU or on disk.

    Raises:
        ValueError: for weights that are nowhere.
    """
    if model.device.type != "meta":
        return model.device
    runs_on = [getattr(getattr(m, "_hf_hook", None), "execution_device", None) for m in model.modules()]
    if not (known := [device for device in runs_on if device is not None]):
        raise ValueError("model must have its weights in memory or offloaded by accelerate, they are on meta")
    return known[0]


def rotary_limits(model: nn.Module) -> list[int]:
    """Return the lengths above which the model takes other rotary tables for the whole batch (longrope)."""
    config = unwrap(model).config.get_text_config(decoder=True)
    given = getattr(config, "rope_parameters", None) or {}
    tables = [given, *(one for one in given.values() if isinstance(one, Mapping))]
    kinds = [one for one in tables if one.get("rope_type") == "longrope"]
    positions = getattr(config, "original_max_position_embeddings", None)
    found = {one.get("original_max_position_embeddings") or positions for one in kinds}
    return sorted(int(limit) for limit in found if limit)


def padding_is_felt(model: nn.Module, ids: Tensor) -> bool:
    """Say whether tokens behind a text change the text's own states: attention that looks ahead.

    A text is read once alone and once with tokens behind it; the answer is kept for the model as it is
    configured.

    Args:
        model: any decoder.
        ids: the text, of which a few tokens are read.
    """
    config = unwrap(model).config
    setting = f"{config.to_json_string()} {getattr(config, '_attn_implementation', '')}"
    known = _felt.setdefault(unwrap(model), {})
    if setting not in known:
        short = ids[: min(PROBE, max(1, len(ids) // 2))].to(input_device(model))
        behind = ids[len(short) :][:PROBE].to(short.device)
        with inference(model):
            alone, among = (_last_state(model, one) for one in (short, torch.cat([short, behind])))
        away, allowed = rounding(among[: len(short)], alone)
        known[setting] = bool((away > allowed).any())
    return known[setting]


def reads_apart(model: Any, ids: Tensor, lengths: list[int], **reading: Any) -> bool:
    """Say whether texts that share a row are read as each alone.

    Args:
        model: any decoder.
        ids: ``[1, token]``: the texts one behind the other, and maybe more.
        lengths: tokens of each text.
        **reading: what the decoder is told of the row: positions, a mask.
    """
    base, decoder = unwrap(model), decoder_forward(model)
    with inference(base):
        both = decoder(input_ids=ids, use_cache=False, **reading).last_hidden_state[0].float()
        texts = ids[:, : sum(lengths)].split(lengths, dim=1)
        alone = [decoder(input_ids=text, use_cache=False).last_hidden_state[0].float() for text in texts]
    wanted = torch.cat(alone)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-9}.get(base.dtype, 0.05)
    return bool((both[: len(wanted)] - wanted).norm() <= tolerance * wanted.norm())


def _last_state(model: nn.Module, ids: Tensor) -> Tensor:
    """Return what leaves the last layer for one text, ``[token, width]``."""
    seen: list[Tensor] = []
    with watch_states(model, lambda number, state: seen.append(state)):
        decoder_forward(model)(input_ids=ids[None], use_cache=False)
    return seen[-1][0]


def rounding(found: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    """Return how far two ways to the same states ``[..., width]`` are apart, and what rounding may do.

    The first is the length of the difference over the length of the state, ``[...]``.
    """
    one, two = found.float(), wanted.to(found.device).float()
    away: Tensor = (one - two).norm(dim=-1) / two.norm(dim=-1).clamp_min(1e-12)
    return away, 2e-3 if found.dtype in (torch.float32, torch.float64) else 0.1
