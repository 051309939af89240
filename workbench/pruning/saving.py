"""Save a pruned model so that plain transformers reloads the same function, or save nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.checks import read_whole, told
from workbench.models.checkpoints import auto_class, is_remote
from workbench.models.costs import parameter_counts
from workbench.models.hooks import at_the_end, inference
from workbench.models.identity import describe_model
from workbench.models.layers import check_in_memory, kept_layers, layer_container, longest_context, unwrap
from workbench.pruning.spellings import spell_both_ways
from workbench.runs.files import atomic_folder, check_room
from workbench.runs.provenance import library_versions

#: file that says how a folder came about; a folder without it is never replaced
RECORD = "pruning.json"
_CARD = Path(__file__).with_name("card.md")
_TEXTS = [
    "The river runs past the old mill, where 12 boats wait for 3 more. How many are there in the evening?",
    "Ein kurzer Satz, 1 + 1 = 2.",
]
_LONGEST = 128
#: largest accepted difference of logits after a reload, in their standard deviations; on one device it is 0
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def save_pruned(model: nn.Module, tokenizer: Any, path: str | Path) -> Path:
    """Save the model as it stands, with tokenizer, model card and provenance, and check what was saved.

    The folder is reloaded with plain `AutoModelForCausalLM.from_pretrained`, a model of images and texts with
    `AutoModelForImageTextToText`, while it still has a temporary name. It gets its own name only if every
    weight is the same bit by bit and the logits are the same, padding and key-value cache included;
    otherwise nothing is left behind. The check holds a second copy of the model.

    Readers with transformers 4.57 compute the same function for most architectures (`make test-compat`). For
    RecurrentGemma, Apertus (off by 0.3 % of the logits' standard deviation), a ModernBERT decoder whose local
    layers have another rotary base and a Mistral 3 whose outer configuration ties the embeddings they do not,
    nor do they for whole models that transformers 5 saves.

    Args:
        model: after `prune_`, or inside `without_layers`; without an adapter and not quantized.
        tokenizer: the model's tokenizer.
        path: a folder that is new, empty, or was written by this function (then it is replaced).

    Returns:
        The folder. Its `config.json` keeps the original indices of the layers, its `pruning.json` the
        provenance.

    Raises:
        ValueError: for a folder with other content, a model that cannot be saved as it stands, and a reload
            that gives another function.
    """
    path = Path(path).expanduser()
    base = unwrap(model)
    _check_folder(path)
    _check_savable(model, base)
    _check_tokenizer(tokenizer, base)
    check_room(path, sum(tensor.numel() * tensor.element_size() for tensor in base.parameters()))
    with atomic_folder(path) as folder:
        _write_weights(base, folder)
        tokenizer.save_pretrained(folder)
        _drop_remote_code(folder, {"config.json": base, "tokenizer_config.json": tokenizer})
        spell_both_ways(folder, tokenizer, trust_remote_code=is_remote(base))
        check = _check_reload(base, tokenizer, folder)
        record = _record(base, check) | {"files": sorted(file.name for file in folder.iterdir())}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(path.name, record), encoding="utf-8")
    return path


def _check_folder(path: Path) -> None:
    if path.is_file():
        raise ValueError(f"path must be a folder, {path} is a file")
    if path.is_dir() and (others := _not_ours(path)):
        wanted = "new, empty or a folder that save_pruned wrote and nobody added to"
        raise ValueError(f"path must be {wanted}; {path} holds other files ({others[0]})")


def _not_ours(folder: Path) -> list[str]:
    """Return the files of a folder that save_pruned did not write."""
    there = {path.name for path in folder.iterdir()}
    try:
        record = json.loads(read_whole(folder / RECORD))
        record["kept_layers"]
        written = {*record.get("files", there), RECORD, "README.md"}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or a file of someone else
        written = set()
    return sorted(there - written)


def _check_savable(model: nn.Module, base: Any) -> None:
    layer_container(base)
    if base.get_output_embeddings() is None:
        raise ValueError(f"model must be a language model with its head, got {type(base).__name__}")
    tuned = next((name for name, module in base.named_modules() if hasattr(module, "base_layer")), None)
    if tuned or (model is not base and hasattr(model, "peft_config")):
        raise ValueError(f"model must have no adapter on it, one is at {tuned}; leave or merge it first")
    if getattr(base, "is_quantized", False):
        raise ValueError("model must have full weights to be saved: load and prune it with quantization=None")
    check_in_memory(base)


def _check_tokenizer(tokenizer: Any, base: Any) -> None:
    if not callable(getattr(tokenizer, "save_pretrained", None)) or not callable(tokenizer):
        raise ValueError(f"tokenizer must be the model's tokenizer, got {type(tokenizer).__name__}")
    entries, pad = base.get_input_embeddings().weight.shape[0], tokenizer.pad_token_id
    if pad is not None and pad >= entries:
        got = f"{tokenizer.pad_token!r} is {pad}; set tokenizer.pad_token = tokenizer.eos_token"
        raise ValueError(f"tokenizer must pad with one of the model's {entries} tokens, {got}")


def _write_weights(base: Any, folder: Path) -> None:
    before = dict(vars(base.config))

    def restore() -> None:  # save_pretrained leaves its own notes there, such as the dtype as text
        vars(base.config).clear()
        vars(base.config).update(before)

    with at_the_end(restore), told("the model cannot be saved as it stands", ValueError):
        base.save_pretrained(folder)


def _check_reload(base: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Reload the folder as any script would and compare; return the largest difference of the logits."""
    from transformers import AutoTokenizer

    twin = _reload(base, folder)
    if kept_layers(twin) != kept_layers(base):
        raise ValueError(f"not saved: it reloads with layers {kept_layers(twin)}, not {kept_layers(base)}")
    _check_weights(base, twin)
    batch = _batch(tokenizer, base)
    reader: Any = AutoTokenizer
    reread = reader.from_pretrained(folder, trust_remote_code=is_remote(tokenizer))
    again = _batch(reread, base)
    if not torch.equal(batch["input_ids"], again["input_ids"]):
        raise ValueError(f"not saved: reloaded as {type(reread).__name__}, the tokenizer reads other tokens")
    difference = 0.0
    for cached in (False, True):
        expected, found = _logits(base, batch, cached), _logits(twin, batch, cached)
        if not torch.isfinite(expected).all():
            raise ValueError("the model's logits are not finite, so that no reload can be checked; not saved")
        difference = max(difference, ((found - expected).abs().max() / expected.std()).item())
    if not difference <= TOLERANCES.get(base.dtype, 1e-4):
        raise ValueError(f"not saved: it is another function, logits differ by {difference:.2g} std")
    return {"largest_logit_difference_in_std": difference, "tokens": int(batch["attention_mask"].sum())}


def _reload(base: Any, folder: Path) -> Any:
    loader = _loader(base)
    device = next(base.parameters()).device
    options: dict[str, Any] = {"device_map": {"": device}} if device.type == "cuda" else {}
    options |= {"dtype": base.dtype, "attn_implementation": base.config._attn_implementation}
    options |= {"trust_remote_code": is_remote(base)}
    with told("not saved: the saved model does not reload", ValueError, OSError, KeyError, TypeError):
        twin = loader.from_pretrained(folder, **options)
    return twin.to(device).eval()


def _loader(base: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM if is_remote(base) else auto_class(base.config)


def _drop_remote_code(folder: Path, written: dict[str, Any]) -> None:
    """Take the names of repository code out of files whose model or tokenizer is a class of transformers.

    Whoever reads the folder then needs no code and runs none; where the code was trusted at load, it stays.
    """
    for name, thing in written.items():
        file = folder / name
        if file.is_file() and not is_remote(thing):
            text = file.read_text(encoding="utf-8")
            entries = json.loads(text, object_hook=_without_code)
            if entries != json.loads(text):
                file.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _without_code(entries: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key not in ("auto_map", "custom_pipelines")}


def _check_weights(base: Any, twin: Any) -> None:
    before, after = base.state_dict(), twin.state_dict()
    both = before.keys() & after.keys()
    equal = {name for name in both if torch.equal(before[name], after[name].to(before[name].device))}
    if wrong := sorted({*before, *after} - equal):
        raise ValueError(f"{len(wrong)} weights change when saved and reloaded ({wrong[0]}, ...); not saved")
    dtypes = {name: buffer.dtype for name, buffer in twin.named_buffers()}
    cast = [name for name, buffer in base.named_buffers() if dtypes.get(name, buffer.dtype) != buffer.dtype]
    if cast:  # rotary frequencies in bfloat16 are off by whole turns a few hundred tokens on
        raise ValueError(f"not saved: {cast[0]} reloads in another dtype; load the model with dtype=...")


def _batch(tokenizer: Any, base: Any) -> dict[str, Tensor]:
    longest = longest_context(base.config) or _LONGEST
    several = tokenizer.pad_token_id is not None
    limits = {"truncation": True, "max_length": min(longest, _LONGEST)}
    texts = _TEXTS if several else _TEXTS[:1]
    batch = tokenizer(texts, return_tensors="pt", padding=several, **limits)
    device = next(base.parameters()).device
    return {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}


def _logits(model: Any, batch: dict[str, Tensor], cached: bool) -> Tensor:
    """Return the logits of every real token."""
    with inference(model):
        logits = outputs(model, "logits", cached=cached, **batch)
    return logits[batch["attention_mask"].bool()].float()


def outputs(
    model: Any, field: str, input_ids: Tensor, attention_mask: Tensor | None = None, *, cached: bool
) -> Tensor:
    """Return a field of a model's output, from one pass or from two with the key-value cache between them."""
    if cached:
        half = input_ids.shape[1] // 2
        seen = None if attention_mask is None else attention_mask[:, :half]
        first = model(input_ids=input_ids[:, :half], attention_mask=seen, use_cache=True)
        cache = getattr(first, "past_key_values", None)
        if cache is not None:  # recurrent models have none
            inputs = {"input_ids": input_ids[:, half:], "attention_mask": attention_mask}
            rest = model(**inputs, past_key_values=cache, use_cache=True)
            return torch.cat([getattr(first, field), getattr(rest, field)], dim=1)
    whole = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    found: Tensor = getattr(whole, field)
    return found


def _record(base: Any, check: dict[str, Any]) -> dict[str, Any]:
    model = describe_model(base)
    config = base.config.get_text_config(decoder=True)
    original = getattr(config, "original_num_hidden_layers", model["n_layers"])
    return {
        **{f"base_{new}": model[old] for new, old in (("model", "id"), ("revision", "revision"))},
        **{key: model[key] for key in ("architecture", "dtype", "weights", "kept_layers")},
        "original_layers": original,
        "removed_layers": sorted(set(range(original)) - set(model["kept_layers"])),
        "parameters": parameter_counts(base)["total"],
        "loader": _loader(base).__name__,
        "reload_check": check,
        "versions": library_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _card(name: str, record: dict[str, Any]) -> str:
    told = {**record, "name": name, "file": RECORD, "count": len(record["removed_layers"])}
    told["revision"] = record["base_revision"] or "not recorded"
    return _CARD.read_text(encoding="utf-8").format(**told)
