"""LoRA adapters that know which layers they were trained on: put on, taken off, one copy of the weights.

peft changes the model in place. Here every use restores it: leaving a context gives the model back bit by
bit.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import logging as transformers_logging

from workbench.models.identity import describe_model
from workbench.models.layers import decoder_layers, kept_layers, unwrap
from workbench.models.loading import keep_trainable
from workbench.places import short_name
from workbench.pruning.removal import without_layers
from workbench.runs.run import Run
from workbench.runs.variant import Variant

#: beside peft's own files in an adapter's folder
RECORD = "healing.json"
_ATTENTION = ("attn", "attention")


@contextmanager
def with_adapter(model: Any, path: str | Path) -> Iterator[Any]:
    """Run the model with a healed adapter on; on leaving it is as before, bit by bit.

    Args:
        model: the model with the very layers the adapter was trained on: pruned, or inside
            ``without_layers``.
        path: folder that ``heal`` wrote.

    Yields:
        The same model.

    Raises:
        ValueError: for a folder that is no healed adapter, an adapter trained on other layers (peft would
            load it onto the wrong ones without a warning), or a model that has an adapter on already.
    """
    with _loaded(model, Path(path)) as wrapper:
        try:
            yield model
        finally:
            wrapper.base_model.unload()


@contextmanager
def as_variant(model: Any, variant: Variant, *, run: Run | str | Path | None = None) -> Iterator[Any]:
    """See the whole model as one of its variants: its layers left out, its adapter on; restored on leaving.

    One copy of the weights serves the base, the pruned and every healed variant.

    Args:
        model: the whole model.
        variant: of ``run.variant(name)``.
        run: the run, or its folder, that the variant's adapter path is relative to.

    Yields:
        The same model.

    Raises:
        ValueError: as ``without_layers`` and ``with_adapter``; for an adapter without ``run``, a model that
            ``load_model`` loaded under another name, or an adapter that was trained on other weights.
    """
    _check_name(model, variant)
    with ExitStack() as stack:
        stack.enter_context(without_layers(model, variant.removed))
        if variant.adapter is not None:
            if run is None and not Path(variant.adapter).is_dir():
                raise ValueError(
                    f"variant {variant.name!r} has adapter {variant.adapter!r}; give run= the run it is in"
                )
            adapter = (run.folder if isinstance(run, Run) else Path(run or ".")) / variant.adapter
            _check_weights(model, adapter)
            stack.enter_context(with_adapter(model, adapter))
        yield model


def merge_adapter_(model: Any, path: str | Path) -> Any:
    """Add a healed adapter to the weights for good; the logits stay those of ``with_adapter`` up to rounding.

    Args:
        model: as for ``with_adapter``.
        path: folder that ``heal`` wrote.

    Returns:
        The same model, a plain transformers model that ``save_pruned`` can write.

    Raises:
        ValueError: as ``with_adapter``; for 4-bit weights, which would be rounded again.
    """
    if getattr(unwrap(model), "is_quantized", False):
        raise ValueError(
            "model must have full weights to be merged into, it is quantized and the sum would be rounded "
            "again; load it with quantization=None, prune_ the same layers and merge, or use with_adapter"
        )
    with _loaded(model, Path(path)) as wrapper, deprecations_muted():
        wrapper.merge_and_unload(safe_merge=True)
    return model


@contextmanager
def new_adapter(model: Any, config: Any, seed: int) -> Iterator[Any]:
    """Put a fresh adapter on the model and give the peft model to train; the model is as before on leaving.

    Args:
        model: a transformers model.
        config: a ``peft.LoraConfig``.
        seed: of the adapter's first weights.

    Raises:
        ValueError: for a model with an adapter on, or targets that peft puts an adapter elsewhere for.
    """
    from peft import get_peft_model

    _check_bare(model)
    keep_trainable(model)
    asked = set(config.target_modules) | {name.rpartition(".")[0] for name in config.target_parameters or ()}
    with _restored(model):
        torch.manual_seed(seed)
        with deprecations_muted():
            wrapper = get_peft_model(model, config)
        try:
            _check_targets(wrapper, asked)
            yield wrapper
        finally:
            wrapper.base_model.unload()


def lora_targets(model: nn.Module, targets: str | list[str]) -> dict[str, list[str]]:
    """Return which modules and parameters of the decoder layers get an adapter, by full name.

    Args:
        model: any decoder-only model; vision parts, embeddings and head are never targets.
        targets: ``"all-linear"``; ``"ffn"``: every linear layer outside attention, which are GRO's
            gate/up/down_proj of Llama and Mistral, fc1/fc2 of Phi-2, w1/w2/c_proj of Qwen, and their like
            elsewhere; or a list of last names such as ``["q_proj", "v_proj"]``.

    Returns:
        ``target_modules`` and ``target_parameters`` (experts of a mixture that are one tensor) for a
        LoraConfig.

    Raises:
        ValueError: for a name that no linear layer has.
    """
    names = {id(module): name for name, module in model.named_modules()}
    modules: list[str] = []
    parameters: list[str] = []
    for layer in decoder_layers(model):
        prefix = names[id(layer)]
        modules += [f"{prefix}.{name}" for name, module in layer.named_modules() if _is_linear(module)]
        parameters += [f"{prefix}.{name}" for name, weight in layer.named_parameters() if weight.ndim == 3]
    last = sorted({name.rpartition(".")[2] for name in modules})
    if targets in ("all-linear", "ffn"):
        chosen = [name for name in modules if targets == "all-linear" or not _in_attention(name)]
        return {"target_modules": chosen, "target_parameters": parameters}
    if isinstance(targets, str) or not targets or not set(targets) <= set(last):
        raise ValueError(f"targets must be 'all-linear', 'ffn' or some of {', '.join(last)}, got {targets!r}")
    chosen = [name for name in modules if name.rpartition(".")[2] in targets]
    return {"target_modules": chosen, "target_parameters": []}


def read_record(path: str | Path) -> dict[str, Any]:
    """Return what ``heal`` wrote of an adapter: kept_layers, model, config, data.

    Raises:
        ValueError: for a folder without such a record.
    """
    record = Path(path) / RECORD
    if not record.is_file():
        raise ValueError(
            f"{path} is not an adapter that heal wrote: it has no {RECORD}, which says what layers it fits"
        )
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return found


@contextmanager
def _loaded(model: Any, path: Path) -> Iterator[Any]:
    """Give the peft model with a healed adapter loaded; to be unloaded or merged before leaving."""
    from peft import PeftModel

    _check_bare(model)
    trained, here = read_record(path)["kept_layers"], list(kept_layers(model))
    if trained != here:
        raise ValueError(
            f"adapter {path} was trained on other layers than the model has: trained on {trained}, the model "
            f"has {here}; leave out the same layers as in training"
        )
    with _restored(model):
        # peft draws first weights before it loads the trained ones
        with deprecations_muted(), torch.random.fork_rng([]):
            wrapper: Any = PeftModel.from_pretrained(model, str(path))
        yield wrapper


def _check_name(model: Any, variant: Variant) -> None:
    loaded = getattr(unwrap(model), "_source", {}).get("id")
    if loaded not in (None, short_name(variant.model)):
        raise ValueError(
            f"variant {variant.name!r} is of the model {variant.model!r}, the model given was loaded as "
            f"{loaded!r}; load {variant.model!r}, or make the variant with model={loaded!r}"
        )


def _check_weights(model: Any, path: Path) -> None:
    """Refuse an adapter of other weights, where its record can be compared with the model."""
    _check_bare(model)
    record, quantized = read_record(path), getattr(unwrap(model), "is_quantized", False)
    trained, here = record.get("model", {}), describe_model(model)
    # another type rounds the weights otherwise; the digest of offloaded weights is one of their load alone
    alike = all(trained.get(name) == here[name] for name in ("dtype", "kept_layers"))
    alike = alike and record.get("quantized", quantized) == quantized
    digests = {trained.get("weights", here["weights"]), here["weights"]}
    if alike and len(digests) > 1 and not any(digest.startswith("offloaded") for digest in digests):
        raise ValueError(
            f"adapter {path} was trained on other weights than the model has: on {trained['weights']} of "
            f"{trained.get('id')!r}, the model has {here['weights']} ({here['id']!r}); load the model it was "
            "trained on, or heal this one"
        )


def _check_bare(model: Any) -> None:
    if _adapted(unwrap(model)):
        raise ValueError("model must have no adapter on, it has one; leave its with_adapter first")


def _check_targets(wrapper: Any, asked: set[str]) -> None:
    """Refuse what peft changes silently: dense layers named like experts get no adapter in a mixture."""
    differ = sorted(asked ^ _adapted(wrapper.get_base_model()))
    if differ:
        raise ValueError(
            f"targets: peft cannot adapt all {len(asked)} targets of this model ({differ[0]} is one it does "
            "not); give a list of module names such as ['q_proj', 'v_proj']"
        )


def _adapted(model: nn.Module) -> set[str]:
    """Return the names of the modules that have an adapter (one on an adapted module counts once)."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    return {name for name in found if not name.endswith(".base_layer")}


@contextmanager
def deprecations_muted() -> Iterator[None]:
    """Keep the libraries' notes on their own deprecations off the screen."""
    with ExitStack() as stack:
        stack.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
        transformers_logging.set_verbosity_error()
        stack.enter_context(warnings.catch_warnings(action="ignore", category=FutureWarning))
        yield


@contextmanager
def _restored(model: Any) -> Iterator[None]:
    """Give back what peft and training switch on a model: which parameters want gradients, and the mode."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, gradient in wanted:
            parameter.requires_grad_(gradient)
            parameter.grad = None
        for module, training in modes:
            module.training = training


def _is_linear(module: nn.Module) -> bool:
    # by name: Conv1D is transformers' own linear layer (GPT-2), Linear4bit that of bitsandbytes
    return isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "Linear4bit", "Linear8bitLt")


def _in_attention(name: str) -> bool:
    return any(word in part.lower() for part in name.split(".") for word in _ATTENTION)
