"""Digests of what a result depends on: every element of every weight, the settings, the tokenizer.

No torch is imported here: whoever holds a tensor has it loaded already.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import secrets
import sys
from types import CodeType
from typing import Any

from xxhash import xxh3_128_digest

#: up to this many bytes a model is read whole at every call; of a larger one each tensor once, then sampled
SMALL = 64 * 2**20
#: eight-byte words that are weighted together
_WORDS = 2**20
#: elements of a tensor looked at again, in case it was written to without torch's version counter moving
_SAMPLED = 1024
#: configuration entries that say where a model came from, not what it computes
_NOT_COMPUTED = {"_name_or_path", "transformers_version", "use_cache", "_from_model_config"}
#: attributes of a module that change while it is used, or with its place alone
_PASSING = {"training", "gradient_checkpointing", "max_seq_len_cached", "layer_idx", "name_or_path"}
_TOKENIZER = ["padding_side", "truncation_side", "model_max_length", "add_bos_token", "add_eos_token"]
_TOKENIZER += ["split_special_tokens", "clean_up_tokenization_spaces"]


def digest(value: Any) -> str:
    """Return the SHA-256 of plain JSON values, as 64 hex digits; the order of keys does not matter.

    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    True
    """
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def model_digests(model: Any) -> dict[str, str]:
    """Return what a model computes with, in digests.

    Returns:
        ``weights``: every element of every parameter and buffer, by its name, adapters included.
        ``settings``: configuration, generation settings, which adapters act and how strongly.
        ``modules``: the class of each module, and the numbers, words and functions that it holds.
        ``hooks``: the forward hooks on its modules, where there are any.
    """
    hooks = [*filter(None, itertools.starmap(_hooks, model.named_modules()))]
    found = {"weights": weights_digest(model), "settings": digest(_settings(model))}
    found["modules"] = modules_digest(model)
    return found | {"hooks": digest(hooks)} if hooks else found


def modules_digest(model: Any) -> str:
    """Return a digest of the class of each module, and of the numbers, words and functions that it holds."""
    return digest([*itertools.starmap(_held, model.named_modules())])


def weights_digest(model: Any) -> str:
    """Return a digest of every element of every parameter and buffer of a module, as 64 hex digits.

    The same weights give the same digest on a CPU and on a GPU. A tensor is read again when torch's version
    counter says that it was written to; a write around that counter (``p.data[...] = 0``) is seen for certain
    in models up to ``SMALL`` bytes, and by a sample of each tensor in larger ones.
    """
    tensors = dict(sorted([*model.named_parameters(), *model.named_buffers()]))
    if any(tensor.is_meta for tensor in tensors.values()):
        return _never_the_same(model)
    small = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= SMALL
    looks = {name: _quick(tensor) for name, tensor in tensors.items()} if small else _samples(tensors)
    whole = hashlib.sha256()
    for name, tensor in tensors.items():
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        whole.update(_sums_once(tensor, looks[name]))
        if scales := getattr(tensor, "quant_state", None):
            # of bitsandbytes: the packed weights are half of it
            held = sorted(pair for pair in scales.as_dict().items() if hasattr(pair[1], "data_ptr"))
            whole.update(b"".join(_sums(value) for _, value in held))
    return whole.hexdigest()


def model_look(model: Any) -> str:
    """Return a digest of a model's settings and of a sample of each tensor, which costs next to nothing.

    Two models of one architecture that differ have another look, unless they differ in a few elements.
    """
    tensors = dict(sorted([*model.named_parameters(), *model.named_buffers()]))
    there = {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}
    seen = {name: (str(there[name].dtype), look.hex()) for name, look in _samples(there).items()}
    return digest([type(model).__name__, _settings(model), list(tensors), seen])


def tensor_digest(tensor: Any) -> str:
    """Return a digest of every element of a tensor, with its shape and type."""
    head = f"{tuple(tensor.shape)} {tensor.dtype}\n".encode()
    return hashlib.sha256(head + _sums(tensor)).hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of a tokenizer: vocabulary, rules, special tokens, chat template, sides, limits."""
    known = getattr(tokenizer, "_vocabulary_digest", (None, ""))
    if known[0] != (mark := tokenizer_look(tokenizer)):
        known = (mark, digest(_vocabulary(tokenizer, getattr(tokenizer, "backend_tokenizer", None))))
        tokenizer._vocabulary_digest = known
    return digest([mark, known[1]])


def tokenizer_look(tokenizer: Any) -> str:
    """Return a digest of all that a tokenizer holds but its vocabulary, which takes long to read."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    light = {
        "class": type(tokenizer).__name__,
        "settings": {name: repr(getattr(tokenizer, name, None)) for name in _TOKENIZER},
        "template": getattr(tokenizer, "chat_template", None),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "added": [[number, repr(token)] for number, token in sorted(tokenizer.added_tokens_decoder.items())],
        "rules": [repr(getattr(backend, rule, None)) for rule in rules],
        "size": len(tokenizer),
    }
    return digest(light)


def _vocabulary(tokenizer: Any, backend: Any) -> Any:
    if backend is None:
        return sorted(tokenizer.get_vocab().items())
    whole = json.loads(backend.to_str())
    return {key: value for key, value in whole.items() if key not in ("padding", "truncation")}


def _settings(model: Any) -> dict[str, Any]:
    config: Any = getattr(model, "config", None)
    generation: Any = getattr(model, "generation_config", None)
    return {
        "class": type(model).__name__,
        "config": _told(config.to_dict()) if hasattr(config, "to_dict") else None,
        "generation": _told(generation.to_dict()) if generation is not None else None,
        "adapters": [*filter(None, itertools.starmap(_adapters, model.named_modules()))],
    }


def _told(config: dict[str, Any]) -> dict[str, Any]:
    return {key: repr(value) for key, value in config.items() if key not in _NOT_COMPUTED}


def _adapters(name: str, module: Any) -> list[Any]:
    """Return which adapters act in a module, and how strongly."""
    if not (hasattr(module, "scaling") and hasattr(module, "active_adapters")):
        return []
    scaling = sorted((adapter, float(value)) for adapter, value in module.scaling.items())
    merged = list(module.merged_adapters)
    return [name, list(module.active_adapters), module.disable_adapters, merged, scaling]


def _held(name: str, module: Any) -> list[Any]:
    """Return what a module computes with beside its weights: its class, numbers, words, functions."""
    held = {key: value for key, value in vars(module).items() if key[0] != "_" and key not in _PASSING}
    plain = {key: repr(value) for key, value in held.items() if isinstance(value, bool | int | float | str)}
    functions = {key: _function(value) for key, value in held.items() if hasattr(value, "__code__")}
    return [name, type(module).__qualname__, plain, functions]


def _hooks(name: str, module: Any) -> list[Any]:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return [name, *map(_function, hooks)] if hooks else []


def _function(function: Any) -> list[Any]:
    """Return a function by its name, code and what it holds; what is neither code nor plain by its type."""
    if isinstance(function, functools.partial):
        held = [*function.args, *itertools.chain(*sorted(function.keywords.items()))]
        return [*_function(function.func), *map(_plain, held)]
    name = getattr(function, "__qualname__", type(function).__qualname__)
    own = getattr(function, "__func__", function)
    if not hasattr(own, "__code__"):
        return [name, *map(_plain, itertools.chain(*sorted(getattr(function, "__dict__", {}).items())))]
    cells = [getattr(cell, "cell_contents", None) for cell in own.__closure__ or ()]
    return [name, code_parts(own.__code__), *map(_plain, [*cells, *(own.__defaults__ or ())])]


def _plain(value: Any) -> str:
    if hasattr(value, "data_ptr"):
        return tensor_digest(value)
    known = value is None or isinstance(value, bool | int | float | str)
    return repr(value) if known else type(value).__qualname__


def code_parts(code: CodeType) -> list[Any]:
    """Return what code does as plain values: the same in every process, wherever its file lies."""
    return [code.co_code.hex(), _constant(code.co_consts), list(code.co_names), list(code.co_varnames)]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return code_parts(value)
    if isinstance(value, tuple):
        return [_constant(part) for part in value]
    # the order of a set is another in each process
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _never_the_same(model: Any) -> str:
    """Return a digest for weights that are not in memory (offloaded): one of this load alone."""
    if not hasattr(model, "_load_digest"):
        model._load_digest = "offloaded-" + secrets.token_hex(16)
    return str(model._load_digest)


def _sums(tensor: Any) -> bytes:
    """Return sums of a tensor's eight-byte words, each times an odd number of its place, modulo 2^64.

    An odd factor has an inverse, so changing one word always changes its sum.
    """
    torch = sys.modules["torch"]
    with torch.no_grad():
        flat = _bytes(tensor)
        rest = flat.numel() % 8
        words = flat[: flat.numel() - rest]
        words = (words if words.data_ptr() % 8 == 0 else words.clone()).view(torch.int64)
        factors = _factors(torch, tensor.device)
        parts = [(chunk * factors[: len(chunk)]).sum() for chunk in words.split(_WORDS)] if len(words) else []
        sums = torch.stack(parts).cpu().numpy().tobytes() if parts else b""
        return sums + (flat[flat.numel() - rest :].cpu().numpy().tobytes() if rest else b"")


@functools.lru_cache
def _factors(torch: Any, device: Any) -> Any:
    made = torch.Generator().manual_seed(0)
    return (torch.randint(-(2**62), 2**62, (_WORDS,), generator=made) | 1).to(device)


def _bytes(tensor: Any) -> Any:
    return tensor.detach().contiguous().reshape(-1).view(sys.modules["torch"].uint8)


def _quick(tensor: Any) -> bytes:
    """Return a digest of a tensor that costs a tenth of its sums, on the CPU; on a GPU its sums are quick."""
    return xxh3_128_digest(_bytes(tensor).numpy()) if tensor.device.type == "cpu" else _sums(tensor)


def _sums_once(tensor: Any, look: bytes) -> bytes:
    """Return the sums of a tensor, from memory where neither version, place nor look has changed."""
    try:
        state = (tensor.data_ptr(), tensor._version, tuple(tensor.shape), look)
    except RuntimeError:  # made in inference mode, where no version is counted
        return _sums(tensor)
    known = getattr(tensor, "_sums_of", None)
    if known is None or known[0] != state:
        known = tensor._sums_of = (state, _sums(tensor))
    return bytes(known[1])


def _samples(tensors: dict[str, Any]) -> dict[str, bytes]:
    """Return some elements of each tensor as bytes; one copy from each device, since each copy waits."""
    torch = sys.modules["torch"]
    found: dict[str, bytes] = {}
    with torch.no_grad():
        for device in {tensor.device for tensor in tensors.values()}:
            names = [name for name, tensor in tensors.items() if tensor.device == device and tensor.numel()]
            picked = [_sampled(torch, tensors[name]) for name in names]
            data = torch.cat(picked).cpu().numpy().tobytes() if picked else b""
            for name, part in zip(names, picked, strict=True):
                found[name], data = data[: len(part)], data[len(part) :]
    return {name: found.get(name, b"") for name in tensors}


def _sampled(torch: Any, tensor: Any) -> Any:
    places = _places(torch, tensor.numel(), tensor.device)
    return tensor.detach().reshape(-1)[places].contiguous().view(torch.uint8)


@functools.lru_cache(maxsize=1024)
def _places(torch: Any, elements: int, device: Any) -> Any:
    made = torch.Generator().manual_seed(elements)
    return torch.randint(elements, (min(_SAMPLED, elements),), generator=made).to(device)
