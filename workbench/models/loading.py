"""Load a decoder-only language model with its tokenizer, and say which model it is."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import chat_template_utils, hub
from transformers.utils import logging as transformers_logging

from workbench import bars
from workbench.checks import is_whole, one_of, printable, told
from workbench.models import checkpoints, gguf
from workbench.models.layers import kept_layers, layer_container
from workbench.places import short_name

# transformers and peft import it where it is installed, and it warns of optional packages of its own
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

#: ways to spread a model over several devices
_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | Path = "demo",
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization: str | None = None,
    trust_remote_code: bool = False,
    device_map: str | torch.device | Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Load a decoder-only language model and its tokenizer, ready to be analysed, pruned or asked.

    Whatever can be checked without the weights is checked first. Weights come from safetensors, or from a
    GGUF file, whose values are dequantised (which a line says); a weight that the files lack is an error,
    never a random value.

    Args:
        name: "demo" for the shipped model, "smollm2" for the real one that `make smollm2` fetches (else its
            hub id), a folder, a .gguf file, or a hub id such as "org/model".
        revision: branch, tag or commit of a hub id.
        dtype: "float32", "bfloat16" or "float16"; None for float32 on the CPU and bfloat16 on a GPU.
        device: such as "cpu", "cuda" or "cuda:1"; None for the GPU when there is one.
        quantization: "nf4" for 4-bit weights by bitsandbytes (made for GPUs; on the CPU it works, slowly), or
            None.
        trust_remote_code: whether code that comes with the model may run.
        device_map: one device for the whole model as transformers names it ("cpu", {"": "cuda:1"}), in place
            of ``device``. Layers are measured, cut and trained on one: "auto" and the like are refused.

    Returns:
        The model in evaluation mode, and its tokenizer with a padding token and left padding.

    Raises:
        ValueError: with one line that says which argument is wrong and what is allowed.
    """
    place = place_of(device if device_map is None else _one_device(device_map, device))
    kind = _dtype(dtype, place)
    packed = _packed(quantization, kind)
    source = gguf.smollm2(revision) if str(name) == gguf.SMOLLM2 else checkpoints.locate(name, revision)
    source, form = gguf.gguf_options(source, quantization)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision or "main", **form}
    config = _config(source, str(name), options)
    tokenizer = _tokenizer(source, str(name), config, options)
    options |= {"config": config, "dtype": kind, **packed, **(gguf.dequantised() if form else {})}
    model = _model(source, str(name), place, options)
    with told(f"name {name!r}: its generation_config.json cannot be used", ValueError):
        checkpoints.check_ends(model.generation_config)
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    if form:
        gguf.full_weights_(model, short_name(name))
    called = name if Path(name).name else os.path.abspath(name)  # "." says nothing elsewhere
    model._source = {"id": short_name(called), "revision": _commit(str(name), source, revision)}
    model._source["folder"] = os.path.abspath(model.config._name_or_path)  # where this process is moves
    return model.eval(), tokenizer


def _commit(name: str, source: str, revision: str | None) -> str | None:
    """Return the commit of a model of the hub, None for one on disk."""
    commit = checkpoints.cached(gguf.SMOLLM2_HUB if name == gguf.SMOLLM2 else name, revision)
    if commit and (source == str(commit) or not Path(source).exists()):
        return commit.name
    return revision


def place_of(device: str | torch.device | None) -> torch.device:
    """Return a device that is here: the one asked for, else the first CUDA GPU, else the CPU.

    Raises:
        ValueError: for what is no device, or none of this machine.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with told(f"device must be None, 'cpu', 'cuda', 'cuda:1', ..., got {device!r}", RuntimeError, TypeError):
        place = torch.device(device if device is not None else "cuda" if count else "cpu")
    if place.type == "meta":
        raise ValueError("device 'meta' holds no weights; use 'cpu' or None")
    if place.type != "cuda":
        with told(f"device {device!r} is not here; use 'cpu' or None", Exception):
            torch.empty(1, device=place)
        return place
    if (place.index or 0) >= count:
        raise ValueError(f"device {device!r} is not here: torch sees {count} CUDA GPUs; use 'cpu' or None")
    return torch.device("cuda", torch.cuda.current_device() if place.index is None else place.index)


def _one_device(device_map: Any, device: Any) -> Any:
    """Return the device of a map that has one."""
    one = device_map.get("") if isinstance(device_map, Mapping) and len(device_map) == 1 else device_map
    one = f"cuda:{one}" if is_whole(one) else one
    if device is not None or not isinstance(one, str | torch.device) or one in _SPREAD:
        one_device = "one device such as 'cpu' or {'': 'cuda:0'}, with device=None"
        raise ValueError(f"device_map must be {one_device}, got {device_map!r}; try quantization='nf4'")
    return one


def _dtype(dtype: str | torch.dtype | None, place: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if place.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    return _DTYPES[one_of(name, [*_DTYPES, None], "dtype")]


def _packed(quantization: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return what tells transformers to pack the weights."""
    if one_of(quantization, ("nf4", None), "quantization") is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise ValueError("quantization 'nf4' needs bitsandbytes: install it, or give quantization=None")
    config: Any = transformers.BitsAndBytesConfig
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return {"quantization_config": config(**settings, bnb_4bit_compute_dtype=dtype)}


def _config(source: str, name: str, options: dict[str, Any]) -> Any:
    # each class of configurations has its own ways to fail, as each tokenizer class below
    with told(f"name {name!r}: its config.json cannot be used", Exception):
        config = transformers.AutoConfig.from_pretrained(source, **options)
    checkpoints.check_decoder_only(config, name)
    for one in (config, config.get_text_config(decoder=True)):  # what a pass returns is what it is asked for
        one.return_dict, one.output_hidden_states, one.output_attentions = True, False, False
    return config


def _tokenizer(source: str, name: str, config: Any, options: dict[str, Any]) -> Any:
    with told(f"name {name!r} has no tokenizer that can be loaded", Exception):
        if file := _tokenizer_file(source, options):
            checkpoints.check_growth(file)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, padding_side="left", **options)
        tokenizer = _as_its_file_says(tokenizer, source, options)
        ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    _check_template(name, tokenizer)
    entries = config.get_text_config(decoder=True).vocab_size
    if not ids or tokenizer.vocab_size > entries:
        got = f"it has {tokenizer.vocab_size} entries and makes {ids} of 'a', the model knows {entries}"
        raise ValueError(f"name {name!r}: the tokenizer is not the model's: {got}")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= entries:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ValueError(f"name {name!r}: its tokenizer has no pad, eos or unk token to pad with; set one")
    return tokenizer


def _as_its_file_says(tokenizer: Any, source: str, options: dict[str, Any]) -> Any:
    """Return the tokenizer of `tokenizer.json` where the class that transformers took reads other tokens.

    Some classes bring their own way of splitting words (transformers 5: those of Qwen 2), whatever the file.
    """
    if checkpoints.is_remote(tokenizer):
        return tokenizer
    file = _tokenizer_file(source, options)
    if file is None or checkpoints.reads_as_its_file(tokenizer, file, special_tokens=False):
        return tokenizer
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast.from_pretrained(source, padding_side="left", revision=options["revision"])


def _tokenizer_file(source: str, options: dict[str, Any]) -> str | None:
    if "gguf_file" in options:
        return None
    where = {"revision": options["revision"], "_raise_exceptions_for_missing_entries": False}
    file: str | None = hub.cached_file(source, "tokenizer.json", **where)
    return file


def _check_template(name: str, tokenizer: Any) -> None:
    templates = getattr(tokenizer, "chat_template", None) or {}
    for template in [templates] if isinstance(templates, str) else templates.values():
        with told(f"name {name!r}: its chat template cannot be used", Exception):
            chat_template_utils._compile_jinja_template(template)


def _model(source: str, name: str, place: torch.device, options: dict[str, Any]) -> Any:
    config = options["config"]
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    own: Any = transformers.AutoModelForCausalLM
    loader = own if remote and options["trust_remote_code"] else checkpoints.auto_class(config)
    # weights of another shape are in the report, and refused below
    options = options | {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if "gguf_file" not in options:
        options["use_safetensors"] = True
    on_load = place.type == "cuda" or "quantization_config" in options
    if on_load:
        # straight onto the GPU, without a whole copy in main memory first
        options["device_map"] = {"": place}
    what = f"name {name!r}: its weights are not all there, or not whole"
    wrong = f"name {name!r}: no model can be built of its config.json"
    with (
        told(f"name {name!r} cannot be loaded", RuntimeError, MemoryError),
        told(what, OSError, SafetensorError, hint="; download or save them again"),
        told(f"name {name!r} needs a package that is not here", ImportError),
        told(wrong, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError),
        _own_bars(),
    ):
        model, report = loader.from_pretrained(source, **options)
    _check_report(name, report, model)
    if getattr(config, "quantization_config", None) is None and "gguf_file" not in options:
        with told(f"name {name!r}", ValueError):
            checkpoints.check_are_numbers(model, source, options["revision"], report["unexpected_keys"])
    keep_trainable(model)
    return model if on_load else model.to(place)


@contextmanager
def _own_bars() -> Iterator[None]:
    """Let transformers draw its bars as this package does: a widget is dead in a saved notebook."""

    def draw(factory: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return (bars.tqdm if factory is tqdm else factory)(*arguments, **options)

    before = transformers_logging.set_tqdm_hook(draw)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


def keep_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights for inference on the CPU the first time they are used.

    Packed weights let no gradient through, and training would go wrong without a word.

    Raises:
        ValueError: when they are packed already.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            packed = "these were packed for inference on the CPU; load it with load_model"
            raise ValueError(f"model must have 4-bit weights as they were loaded, {packed}")
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _check_report(name: str, report: dict[str, Any], model: nn.Module) -> None:
    """Refuse weights that would be random, and layers beyond the configuration, which would be left out."""
    with told(f"name {name!r}", ValueError):
        stack, path = layer_container(model)
        kept_layers(model)
    depth = len(getattr(stack, path))
    wrong = {*map(str, report["missing_keys"])}
    wrong |= {f"{key} {[*found]}, not {[*asked]}" for key, found, asked in report["mismatched_keys"]}
    if wrong:
        lacks = f"{len(wrong)} weights are missing or of another shape, such as {printable(min(wrong))}"
        raise ValueError(f"name {name!r}: {lacks}; they would be random")
    numbered = re.compile(rf"(?:^|\.){path}\.(\d+)\.")
    found = {key: numbered.search(key) for key in map(str, report["unexpected_keys"])}
    if beyond := [key for key, place in found.items() if place and int(place[1]) >= depth]:
        more = f"more layers than the {depth} of the configuration, such as {printable(min(beyond))}"
        raise ValueError(f"name {name!r}: the files hold {more}")
