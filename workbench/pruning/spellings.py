"""A saved model's files in the words of both generations of transformers, 4 and 5.

Transformers 5 keeps the rotary settings under `rope_parameters` only; a reader with transformers 4 then takes
its defaults, a base of 10,000, and computes another function without a word. So the old names stand beside.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

#: model type -> its old names for the base, and for the share of rotated entries or the sliding layers' base
_OWN_NAMES = dict.fromkeys(("gpt_neox", "gpt_neox_japanese"), ("rotary_emb_base", "rotary_pct"))
_OWN_NAMES["modernbert-decoder"] = ("global_rope_theta", "local_rope_theta")
_NOT_SCALING = ("rope_theta", "partial_rotary_factor", "rope_type", "type")
#: model types for which transformers 4 wants the kind of scaling under `type`; all others take `rope_type`
_UNDER_TYPE: tuple[str, ...] = ("olmo", "olmo2", "phi3", "phi4_multimodal", "phimoe", "chameleon", "fuyu")
_UNDER_TYPE += ("hunyuan_v1_dense", "hunyuan_v1_moe")
_FAST = "PreTrainedTokenizerFast"


def spell_both_ways(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Add the names of transformers 4 to the `config.json` and `tokenizer_config.json` of a saved model.

    Where transformers 5 would then read another configuration (of an architecture that transformers 4 does
    not have), `config.json` stays as it was.
    """
    file = folder / "config.json"
    text = file.read_text(encoding="utf-8")
    before = _read(folder, trust_remote_code)
    _write(file, _with_old_names(json.loads(text)))
    try:
        with warnings.catch_warnings(action="error"):  # of a name that the architecture never had
            after = _read(folder, trust_remote_code)
    except FutureWarning:
        after = {}
    if any(after.get(key) != value for key, value in before.items()):
        file.write_text(text, encoding="utf-8")
    if (folder / "tokenizer.json").is_file():
        _spell_tokenizer(folder / "tokenizer_config.json")


def _spell_tokenizer(file: Path) -> None:
    entries = json.loads(file.read_text(encoding="utf-8"))
    if entries.get("tokenizer_class") == "TokenizersBackend":
        entries["tokenizer_class"] = _FAST
    if isinstance(entries.get("extra_special_tokens"), list):  # transformers 4 has names of tokens there
        entries["additional_special_tokens"] = entries.pop("extra_special_tokens")
    _write(file, entries)


def _with_old_names(entries: dict[str, Any]) -> dict[str, Any]:
    parts = {key: _with_old_names(value) for key, value in entries.items() if _is_config(value)}
    kind, rope = entries.get("model_type", ""), entries.get("rope_parameters")
    old = _rotary(kind, rope) if rope else {}
    renamed = {"torch_dtype": "dtype", "num_experts": "num_local_experts"}.items()
    old |= {before: entries[now] for before, now in renamed if entries.get(now) is not None}
    return old | entries | parts


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and "model_type" in value


def _rotary(kind: str, rope: dict[str, Any]) -> dict[str, Any]:
    """Return the old entries for `rope_parameters`, which may hold a dictionary for each kind of layer."""
    by_layer = isinstance(rope.get("full_attention"), dict)
    full = rope["full_attention"] if by_layer else rope
    second = "rope_local_base_freq" if by_layer else "partial_rotary_factor"
    names = _OWN_NAMES.get(kind, ("rope_theta", second))
    sliding = (rope.get("sliding_attention") or full).get("rope_theta")
    values = (full.get("rope_theta"), sliding if by_layer else rope.get("partial_rotary_factor"))
    scaling = _scaling(kind, full)
    old = dict(zip(names, values, strict=True)) | ({"rope_scaling": scaling} if scaling else {})
    return {key: value for key, value in old.items() if value is not None}


def _scaling(kind: str, rope: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in rope.items() if key not in _NOT_SCALING}
    scheme = rope.get("rope_type", "default")
    if scheme == "default" and not rest:
        return {}
    if kind.startswith(("phi3", "phi4")):  # these allow no other entry
        rest = {key: value for key, value in rest.items() if key.endswith("_factor")}
    return {"type" if kind in _UNDER_TYPE else "rope_type": scheme, **rest}


def _read(folder: Path, trust_remote_code: bool) -> dict[str, Any]:
    """Return the entries of the configuration that transformers reads, without `type` beside `rope_type`."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    entries: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str), object_hook=_without_type)
    return entries


def _without_type(entries: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if not (key == "type" and "rope_type" in entries)}


def _write(file: Path, entries: dict[str, Any]) -> None:
    text = json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
