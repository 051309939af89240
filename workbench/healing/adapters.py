"""LoRA adapters that know which layers they were trained on: put on, taken off, one copy of the weights.

peft changes the model in place. Here every use restores it: leaving a context gives the model back bit by
bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from workbench.checks import told
from workbench.healing.records import WEIGHTS, check_layers, checked_adapter, read_record
from workbench.healing.restoring import deprecations_muted, restored, weights_kept
from workbench.healing.tensors import holds_tensors, put_tensors
from workbench.models.identity import describe_model
from workbench.models.layers import check_in_memory, decoder_layers, unwrap
from workbench.models.loading import keep_trainable
from workbench.places import short_name
from workbench.pruning.collapse import collapse_changes
from workbench.pruning.removal import two_states, without_layers
from workbench.runs.run import Run
from workbench.runs.variant import Variant

_ATTENTION = ("attn", "attention")


@contextmanager
def with_adapter(model: Any, path: str | Path, *, layers: Sequence[int] | None = None) -> Iterator[Any]:
    """Run the model with a LoRA adapter on; on leaving, or when that fails, it is as before, bit by bit.

    Args:
        model: the model with the very layers the adapter was trained on: pruned, or inside
            ``without_layers``.
        path: folder that ``heal`` wrote, or one of whole tensors that ``merge_variants`` wrote.
        layers: for a LoRA adapter of another trainer, which says nothing of layers: the original indices of
            the layers it was trained on, by your word.

    Yields:
        The same model.

    Raises:
        ValueError: for a folder that is no healed adapter, an adapter trained on other layers (peft would
            load it onto the wrong ones without a warning), files that are damaged or altered, tensors that
            are missing, too many, of another size or not finite, or a model that has an adapter on already.
    """
    with weights_kept(model), ExitStack() as stack:
        if holds_tensors(path):
            _check_bare(model)
            put_tensors(model, path, layers)
        else:
            stack.enter_context(_loaded(model, Path(path), layers))
        yield model


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
        if variant.merges:
            stack.enter_context(two_states(collapse_changes(model, variant.merges, variant.merging)))
        stack.enter_context(without_layers(model, variant.removed))
        if variant.adapter is not None:
            if run is None and not Path(variant.adapter).is_dir():
                raise ValueError(f"variant {variant.name!r}: give run=, which its adapter is in")
            adapter = (run.folder if isinstance(run, Run) else Path(run or ".")) / variant.adapter
            _check_weights(model, adapter)
            stack.enter_context(with_adapter(model, adapter))
        yield model


def merge_adapter_(model: Any, path: str | Path, *, layers: Sequence[int] | None = None) -> Any:
    """Add a LoRA adapter to the weights for good; the logits stay those of ``with_adapter`` up to rounding.

    In float32 that is rounding indeed (differences of about 1e-6). In bfloat16 the sum is rounded to 8 bits,
    so that small changes are lost: measured, the most likely next token stays the same in about 96 % of
    positions, and logits differ by up to 0.4. Merge into float32 weights where that matters.

    Args:
        model: as for ``with_adapter``; when merging fails it is as before, bit by bit. While merging, the
            weights that the adapter changes are in memory twice.
        path: folder that ``heal`` wrote.
        layers: as for ``with_adapter``.

    Returns:
        The same model, a plain transformers model that ``save_pruned`` can write.

    Raises:
        ValueError: as ``with_adapter``; for 4-bit weights, which would be rounded again.
    """
    if getattr(unwrap(model), "is_quantized", False):
        raise ValueError("model must have full weights to be merged into: load it with quantization=None")
    with weights_kept(model, after_errors_only=True), ExitStack() as stack:
        if holds_tensors(path):
            put_tensors(model, path, layers)
            return model
        wrapper = stack.enter_context(_loaded(model, Path(path), layers))
        _check_not_tied(model)
        with deprecations_muted(), told(f"adapter {path} cannot be merged", RuntimeError, ValueError):
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
    _check_bare(model)
    keep_trainable(model)
    asked = set(config.target_modules) | {name.rpartition(".")[0] for name in config.target_parameters or ()}
    with restored(model):
        # peft writes it down as what the adapter belongs on: a local folder, of the whole model
        model.name_or_path = None
        torch.manual_seed(seed)
        with deprecations_muted():
            wrapper = get_peft_model(model, config)
        _check_targets(wrapper, asked)
        yield wrapper


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


@contextmanager
def _loaded(model: Any, path: Path, layers: Sequence[int] | None) -> Iterator[Any]:
    """Give the peft model with an adapter loaded that fits; the adapter is taken off on leaving."""
    _check_bare(model)
    check_layers(path, checked_adapter(path, layers), None, model)
    with restored(model):
        # peft draws first weights before it loads the trained ones, and only warns of tensors that it lacks
        with deprecations_muted(), warnings.catch_warnings(), torch.random.fork_rng([]):
            warnings.filterwarnings("ignore", "Found missing adapter keys|Model has `tie_word_embeddings")
            kinds = (SafetensorError, RuntimeError, ValueError, TypeError, KeyError)
            with told(f"adapter {path} cannot be put on the model", *kinds):
                wrapper: Any = PeftModel.from_pretrained(model, str(path))
            _check_tensors(wrapper, path)
        yield wrapper


def _check_tensors(wrapper: Any, path: Path) -> None:
    """Refuse an adapter whose file holds other tensors than the model now has, or numbers that are none."""
    with safe_open(path / WEIGHTS, framework="pt") as file:
        names = set(file.keys())
    if whole := sorted(name for name in names if "lora_" not in name):
        raise ValueError(f"adapter {path} must hold LoRA matrices alone, it has the whole weight {whole[0]}")
    there = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    if differ := sorted(names ^ there.keys()):
        what = "lacks" if differ[0] in there else "alone has"
        raise ValueError(f"adapter {path} does not fit: it {what} {differ[0]} ({len(differ)} such tensors)")
    if bad := [name for name, tensor in there.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"adapter {path} must hold finite numbers, {bad[0]} does not")


def _check_not_tied(model: Any) -> None:
    """Refuse to merge into a matrix that is embedding and head in one: both would change."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    adapted = any(isinstance(end, BaseTunerLayer) for end in ends)
    if adapted and model.config.get_text_config().tie_word_embeddings:
        raise ValueError("an adapter of embeddings or head cannot be merged where they are one matrix")


def _check_name(model: Any, variant: Variant) -> None:
    loaded = getattr(unwrap(model), "_source", {}).get("id")
    if loaded not in (None, short_name(variant.model)):
        of = f"is of the model {variant.model!r}, the model given was loaded as {loaded!r}"
        raise ValueError(f"variant {variant.name!r} {of}; load that, or give the variant model={loaded!r}")


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
        both = [f"{one.get('id')!r} ({one['weights']})" for one in (trained, here)]
        raise ValueError(f"adapter {path} was trained on other weights: on {both[0]}, the model is {both[1]}")


def _check_bare(model: Any) -> None:
    check_in_memory(unwrap(model))
    if adapted_modules(unwrap(model)):
        raise ValueError("model must have no adapter on, it has one; leave its with_adapter first")


def _check_targets(wrapper: Any, asked: set[str]) -> None:
    """Refuse what peft changes silently: dense layers named like experts get no adapter in a mixture."""
    if differ := sorted(asked ^ adapted_modules(wrapper.get_base_model())):
        raise ValueError(f"targets: peft cannot adapt {differ[0]}; give names such as ['q_proj', 'v_proj']")


def adapted_modules(model: nn.Module) -> set[str]:
    """Return the names of the modules that have an adapter (one on an adapted module counts once)."""
    found = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    return {name for name in found if not name.endswith(".base_layer")}


def _is_linear(module: nn.Module) -> bool:
    # by name: Conv1D is transformers' own linear layer (GPT-2), Linear4bit that of bitsandbytes
    return isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "Linear4bit", "Linear8bitLt")


def _in_attention(name: str) -> bool:
    return any(word in part.lower() for part in name.split(".") for word in _ATTENTION)
