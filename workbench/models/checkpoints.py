"""Is what a name points to a whole decoder-only language model? Asked before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.places import demo_path

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SECONDS_FOR_THE_HUB = 10


def locate(name: str | Path, revision: str | None = None) -> str:
    """Return the folder or hub id that `name` stands for, after checking that it has a configuration.

    Args:
        name: "demo" for the shipped model, a folder, or a hub id such as "org/model".
        revision: branch, tag or commit of a hub id; None for anything on disk.

    Raises:
        ValueError: a folder that is missing or no model folder; a hub id that is neither in the cache nor on
            the hub; a revision for something on disk.
    """
    if not isinstance(name, str | Path):
        raise ValueError(f"name must be text or a path, got {type(name).__name__}")
    path = demo_path("model") if str(name) == "demo" else Path(name).expanduser()
    if str(name) == "demo" and not (path / "config.json").is_file():
        raise ValueError(
            "name 'demo': data/demo/model is not there yet; make it with `python data/demo/train.py`"
        )
    if path.exists():
        if revision is not None:
            raise ValueError(
                f"revision must be None for a model on disk, got {revision!r} with name {str(name)!r}"
            )
        _check_folder(path)
        return str(path)
    if _looks_like_a_path(name):
        raise ValueError(
            "name must be 'demo', an existing folder or a hub id such as 'org/model'; "
            f"there is no folder {name}"
        )
    _check_hub(str(name), revision)
    return str(name)


def _looks_like_a_path(name: str | Path) -> bool:
    text = str(name)
    return isinstance(name, Path) or text[:1] in "./~" or text.count("/") > 1 or "\\" in text


def _check_hub(name: str, revision: str | None) -> None:
    """Ask the hub once and briefly; left alone, loading retries for half a minute when it is out of reach."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
        HfApi().model_info(name, revision=revision, timeout=_SECONDS_FOR_THE_HUB)
    except (
        Exception
    ) as error:  # its kinds differ between releases of the hub client: all mean "not to be had"
        raise ValueError(
            f"name must be 'demo', an existing folder or a hub id; {name!r} is no folder here and the hub "
            f"did not give it ({type(error).__name__}: {first_line(error)})"
        ) from error


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"name must be a folder, a hub id or 'demo'; {folder} is a file")
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = "it is an adapter: load its base model, then with_adapter" if adapter else _content(folder)
        raise ValueError(f"{folder} is not a model folder: it has no config.json; {hint}")


def check_files(folder: Path) -> None:
    """Raise ValueError unless a model folder holds whole safetensors weights and a tokenizer."""
    for file, tensors in _weight_files(folder).items():
        _check_whole(file, tensors)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ValueError(
            f"{folder} has no tokenizer (none of {', '.join(_TOKENIZER_FILES[:3])}, ...); "
            "save the model's own there with tokenizer.save_pretrained"
        )


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """Return the safetensors files, with the tensors that the index promises in each (empty: no index)."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if not (folder / "model.safetensors").is_file():
            raise ValueError(_why_no_weights(folder))
        return {folder / "model.safetensors": set()}
    files: dict[Path, set[str]] = {}
    for tensor, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
        files.setdefault(folder / file, set()).add(tensor)
    missing = sorted(file.name for file in files if not file.is_file())
    if missing:
        raise ValueError(
            f"{folder} is only half there: {len(missing)} of {len(files)} weight files are missing "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); download it again"
        )
    return files


def _why_no_weights(folder: Path) -> str:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when they are read; "
            f"convert them to safetensors with save_pretrained in a place you trust"
        )
    return f"{folder} has no weights: model.safetensors is missing; {_content(folder)}"


def _check_whole(file: Path, tensors: set[str]) -> None:
    """Reads the header alone: safetensors compares the length it announces with the length of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as weights:
            absent = tensors - set(weights.keys())
    except SafetensorError as error:
        raise ValueError(
            f"{file} is not a whole safetensors file (half downloaded, or a git-lfs pointer); "
            f"download it again ({first_line(error)})"
        ) from error
    if absent:
        raise ValueError(
            f"{file} lacks {len(absent)} tensors of the index, such as {min(absent)}; download it again"
        )


def check_decoder_only(config: Any, name: str) -> None:
    """Raise ValueError unless a configuration is that of a decoder-only language model with its head.

    BERT and its like are language models to transformers too (`is_decoder`), so the mapping tells nothing.
    """
    from transformers.models.auto import modeling_auto as auto

    remote = getattr(config, "auto_map", None) or {}
    text_models = set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) | set(
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    )
    masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    what = None
    if getattr(config, "is_encoder_decoder", False):
        what = f"an encoder-decoder ({config.model_type})"
    elif masked and not getattr(config, "is_decoder", False):
        what = f"an encoder ({config.model_type})"
    elif config.model_type not in text_models and "AutoModelForCausalLM" not in remote:
        what = f"no language model that transformers knows (model_type {config.model_type!r})"
    elif not remote and not _has_language_head(config.architectures):
        what = f"a {config.architectures[0]}, which has no language-model head"
    if what:
        raise ValueError(
            f"name must be a decoder-only language model (Llama, Qwen, GPT-2, ...); {name} is {what}"
        )


def _has_language_head(architectures: list[str] | None) -> bool:
    heads = [
        ("LM" in name and "MaskedLM" not in name) or "Generation" in name for name in architectures or []
    ]
    return any(heads) or not heads


def _content(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"it holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, the one that says what is wrong."""
    return str(error).strip().split("\n")[0]
