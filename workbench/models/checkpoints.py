"""Is what a name points to a decoder-only language model? Asked before any weight is read.

Only what transformers itself says late or unclearly is checked here; its own errors cover the rest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from workbench.checks import is_whole, near, printable, told
from workbench.places import demo_path, toml_beside

_FILES = toml_beside(__file__)
_TOKENIZERS, _READ, _PICKLES = (tuple(_FILES[kind]) for kind in ("tokenizers", "read", "pickles"))
_SECONDS_FOR_THE_HUB = 10
#: how many times as long the rules of a tokenizer's file may make a text
_GROWTH = 1000
#: building more than this takes minutes, and no model has a tenth of it
_MOST_LAYERS = 10_000
_ALLOWED = "name must be 'demo', 'smollm2', an existing folder, a .gguf file or a hub id such as 'org/model'"


def locate(name: str | Path, revision: str | None = None) -> str:
    """Return the folder or hub id that `name` stands for, after checking that it has a configuration.

    Args:
        name: "demo" for the shipped model, a folder, a .gguf file, or a hub id such as "org/model".
        revision: branch, tag or commit of a hub id; None for anything on disk.

    Raises:
        ValueError: a folder that is missing or no model folder; a hub id that is neither in the cache nor on
            the hub; a revision for something on disk.
    """
    if not isinstance(name, str | Path) or not str(name).strip():
        raise ValueError(f"{_ALLOWED}, got {name!r}")
    path = demo_path("model") if str(name) == "demo" else Path(name).expanduser()
    if str(name) == "demo" and not (path / "config.json").is_file():
        raise ValueError("name 'demo': data/demo/model is missing; make it with `python data/demo/train.py`")
    if not os.path.exists(path):  # also False for what can be no name of a file
        if _looks_like_a_path(name):
            raise ValueError(f"{_ALLOWED}; there is no folder {name}")
        return from_hub(str(name), revision)
    if revision is not None:
        raise ValueError(f"revision must be None for a model on disk, got {revision!r} for {str(name)!r}")
    if not (path.is_file() and path.suffix.lower() == ".gguf"):
        _check_folder(path)
    return str(path)


def _looks_like_a_path(name: str | Path) -> bool:
    text = str(name)
    return isinstance(name, Path) or text[:1] in "./~" or text.count("/") > 1 or "\\" in text


def from_hub(
    name: str,
    revision: str | None = None,
    *,
    allowed: str = "name must be 'demo', 'smollm2', an existing folder, a .gguf file",
) -> str:
    """Ask the hub once and briefly; return the id, or the folder of the cache when the hub is out of reach.

    Left alone, loading asks again for each file, for minutes.
    """
    from huggingface_hub import HfApi

    meant = near(name, ("demo", "smollm2"))
    what = f"{allowed} or a hub id; {name!r}{meant} is no folder here and the hub"
    try:
        with told(f"{what} did not give it", Exception):  # its classes of errors differ between releases
            HfApi().model_info(name, revision=revision, timeout=_SECONDS_FOR_THE_HUB)
    except ValueError:
        folder = cached(name, revision)
        if folder is None:
            raise
        _check_folder(folder)
        return str(folder)
    return name


def cached(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of the hub's cache that holds a model, named after its commit, or None."""
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError:  # no name that the hub could have
        return None
    return Path(file).parent if isinstance(file, str) else None


def _check_folder(folder: Path) -> None:
    """Raise ValueError without a configuration or a tokenizer, or with weights that are all pickled."""
    if not folder.is_dir():
        raise ValueError(f"name must be a folder, a .gguf file, a hub id or 'demo'; {folder} is a file")
    files = {path.name for path in folder.iterdir()}
    if strange := sorted(name for name in files if name.endswith(_READ) and not (folder / name).is_file()):
        raise ValueError(f"{folder} is not a whole model folder: {strange[0]} is no file")
    if "config.json" not in files:
        adapter = "; it is an adapter: load its base model, then with_adapter"
        hint = adapter if "adapter_config.json" in files else _gguf(folder, files)
        raise ValueError(f"{folder} is not a model folder: it has no config.json{hint}")
    if not files & {*_TOKENIZERS}:
        raise ValueError(f"{folder} has no tokenizer (none of {', '.join(_TOKENIZERS[:3])}, ...); save one")
    if not any(name.endswith(".safetensors") for name in files):
        if hint := _gguf(folder, files):
            raise ValueError(f"{folder} has no safetensors weights{hint}")
        if pickles := sorted(name for name in files if name.endswith(_PICKLES)):
            way_out = "convert them to safetensors in a place you trust"
            raise ValueError(f"{folder} has pickled weights, which can run code ({pickles[0]}); {way_out}")
    _check_index(folder)


def _gguf(folder: Path, files: set[str]) -> str:
    file = min((name for name in files if name.endswith(".gguf")), default=None)
    return f"; it has GGUF weights: give that file itself, {folder / file}" if file else ""


def _check_index(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    if file.is_file():
        with told(f"{file} is no index of weight files: download it again", Exception):
            index = json.loads(file.read_text(encoding="utf-8"))
            index["metadata"].items()
            names = {*index["weight_map"].values()}
        if not names or (strange := [name for name in names if not _is_weights(name)]):
            named = f"names {strange[0]!r:.60}" if names else "names no file"
            raise ValueError(f"{file} {named}; weights are read from safetensors files of the folder only")


def check_are_numbers(model: Any, source: str, revision: str, unused: Iterable[str]) -> None:
    """Raise ValueError for weights that are stored as whole numbers, though nothing says their scale.

    Args:
        model: as it was loaded.
        source: the folder or hub id that it was loaded from.
        revision: of the hub id.
        unused: names in the files that the model has no place for.
    """
    fine = [*unused, *(name for name, buffer in model.named_buffers() if not buffer.is_floating_point())]
    ignored = "|".join(model._keys_to_ignore_on_load_unexpected or ["(?!)"])
    for key, kind in _kinds(source, revision):
        known = kind in _FILES["numbers"] or any(one.endswith(key) for one in fine) or re.search(ignored, key)
        if not known:
            raise ValueError(f"{key} is stored as {kind}, and config.json has no quantization_config for it")


def _kinds(source: str, revision: str) -> Iterator[tuple[str, str]]:
    """Yield the name of every tensor in the files of a model, and the kind of its numbers."""
    from safetensors import safe_open
    from transformers.utils import hub

    find = partial(hub.cached_file, source, revision=revision, _raise_exceptions_for_missing_entries=False)
    files = {find("model.safetensors")}
    if files == {None} and (index := find("model.safetensors.index.json")):
        files = {*map(find, json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())}
    for file in filter(None, files):
        with safe_open(file, framework="pt") as weights:
            yield from ((key, weights.get_slice(key).get_dtype()) for key in weights.keys())  # noqa: SIM118


def _is_weights(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


def reads_as_its_file(tokenizer: Any, file: str | Path, *, special_tokens: bool) -> bool:
    """Return whether a tokenizer makes the tokens that its `tokenizer.json` says; with its marks or not."""
    from tokenizers import Tokenizer

    plain, add = Tokenizer.from_file(str(file)), {"add_special_tokens": special_tokens}
    plain.no_padding()
    plain.no_truncation()
    return all(
        tokenizer(text, **add)["input_ids"] == plain.encode(text, **add).ids for text in _FILES["probes"]
    )


def is_remote(thing: Any) -> bool:
    """Return whether the class of a configuration, model or tokenizer came with a model's repository."""
    return type(thing).__module__.startswith("transformers_modules")


def check_decoder_only(config: Any, name: str) -> None:
    """Raise ValueError unless a configuration is that of a decoder-only language model with its head.

    BERT and its like are language models to transformers too (`is_decoder`), so the mapping tells nothing.
    """
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    depth: Any = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    remote = is_remote(config)
    named = config.architectures or []
    architectures = [named] if isinstance(named, str) else named
    if not isinstance(architectures, list) or not all(isinstance(one, str) for one in architectures):
        raise ValueError(f"name {name!r}: architectures must be a list of names, got {named!r:.60}")
    known = {*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    if getattr(config, "is_encoder_decoder", False):
        what = f"an encoder-decoder ({kind})"
    elif kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        what = f"an encoder ({kind})"
    elif kind not in known and not remote:
        what = f"no language model that transformers knows (model_type {kind!r})"
    elif not remote and not _has_language_head(architectures):
        what = f"a {architectures[0]}, which has no language-model head"
    elif not is_whole(depth) or not 1 <= depth <= _MOST_LAYERS:
        raise ValueError(f"name {name!r}: num_hidden_layers must be from 1 to {_MOST_LAYERS}, got {depth!r}")
    elif not _is_window(window := getattr(config.get_text_config(decoder=True), "sliding_window", None)):
        raise ValueError(f"name {name!r}: sliding_window must be a whole number >= 1, got {window!r:.60}")
    else:
        return
    only = "name must be a decoder-only language model such as Llama or GPT-2"
    raise ValueError(f"{only}; {name} is {printable(what)}")


def check_growth(file: str | Path) -> None:
    """Refuse a tokenizer's file whose rules make a text so long that no memory holds it.

    Raises:
        ValueError: naming how many times as long; rules that replace one after the other multiply.
    """
    text = Path(file).read_text(encoding="utf-8")
    rules = json.loads(text) if '"Replace"' in text else {}
    for part in ("normalizer", "decoder"):
        growth = 1.0
        for rule in _replacing(rules.get(part)):
            pattern = (rule.get("pattern") or {}).get("String") or "."
            growth *= max(1.0, len(rule.get("content") or "") / len(pattern))
        if growth > _GROWTH:
            longer = f"at most {_GROWTH} times as long, got {growth:.0e}"
            raise ValueError(f"the {part} of tokenizer.json must make a text {longer}")


def _replacing(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the rules of a part of a tokenizer's file that replace text, those of sequences too."""
    if isinstance(part, dict):
        if part.get("type") == "Replace":
            yield part
        for inside in (*part.get("normalizers", ()), *part.get("decoders", ())):
            yield from _replacing(inside)


def check_ends(settings: Any) -> None:
    """Raise ValueError unless the tokens that end and fill a response are numbers."""
    for name in ("eos_token_id", "pad_token_id"):
        found = getattr(settings, name, None)
        ids = found if isinstance(found, list) and name == "eos_token_id" else [found]
        if not all(one is None or is_whole(one) for one in ids):
            raise ValueError(f"{name} must be the number of a token, got {found!r:.60}")


def auto_class(config: Any) -> Any:
    """Return the class of transformers that loads a configuration's model: of texts, or of images and texts.

    Raises:
        ValueError: for a configuration of another kind.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto
    kind = type(config).__name__
    raise ValueError(f"model must be a decoder-only language model or its configuration, got {kind}")


def _is_window(window: Any) -> bool:
    return window is None or window is False or (is_whole(window) and window >= 1)


def _has_language_head(architectures: list[str]) -> bool:
    heads = [("LM" in name and "MaskedLM" not in name) or "Generation" in name for name in architectures]
    return any(heads) or not heads
