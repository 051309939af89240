"""A saved model's files in the words of both generations of transformers, 4 and 5.

Transformers 5 keeps the rotary settings under `rope_parameters` only; a reader with transformers 4 then takes
its defaults, a base of 10,000, and computes another function without a word. So the old names stand beside.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from workbench.models.checkpoints import is_remote, reads_as_its_file
from workbench.places import toml_beside

#: the names of ``spellings.toml``, by what they are
_NAMES = toml_beside(__file__)


def spell_both_ways(folder: Path, tokenizer: Any = None, *, trust_remote_code: bool = False) -> None:
    """Add the names of transformers 4 to the `config.json` and `tokenizer_config.json` of a saved model.

    Where transformers 5 would then read another configuration (of an architecture that transformers 4 does
    not have), `config.json` stays as it was.

    Args:
        folder: what `save_pretrained` of a model wrote, and that of its tokenizer.
        tokenizer: the tokenizer as it is in memory; None leaves its files alone.
        trust_remote_code: whether the configuration's own code may run.
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
    if tokenizer is not None and not is_remote(tokenizer) and (folder / "tokenizer.json").is_file():
        _spell_tokenizer(folder, tokenizer)


def _spell_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Name a class that reads `tokenizer.json` as it is, where that is how the tokenizer reads.

    Other classes add tokens of their own, another number of them in transformers 4 than in 5.
    """
    file = folder / "tokenizer_config.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    as_it_is = reads_as_its_file(tokenizer, folder / "tokenizer.json", special_tokens=True)
    if as_it_is or entries.get("tokenizer_class") == "TokenizersBackend":
        entries["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(entries.get("extra_special_tokens"), list):  # transformers 4 has names of tokens there
        entries["additional_special_tokens"] = entries.pop("extra_special_tokens")
    entries["padding_side"] = tokenizer.padding_side  # which save_pretrained leaves out when it was set later
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
    names = _NAMES["own_names"].get(kind, ("rope_theta", second))
    sliding = (rope.get("sliding_attention") or full).get("rope_theta")
    values = (full.get("rope_theta"), sliding if by_layer else rope.get("partial_rotary_factor"))
    scaling = _scaling(kind, full)
    old = dict(zip(names, values, strict=True)) | ({"rope_scaling": scaling} if scaling else {})
    return {key: value for key, value in old.items() if value is not None}


def _scaling(kind: str, rope: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in rope.items() if key not in _NAMES["not_scaling"]}
    scheme = rope.get("rope_type", "default")
    if scheme == "default" and not rest:
        return {}
    if kind.startswith(("phi3", "phi4")):  # these allow no other entry
        rest = {key: value for key, value in rest.items() if key.endswith("_factor")}
    return {"type" if kind in _NAMES["under_type"] else "rope_type": scheme, **rest}


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
