"""Recovery: distil the whole model into what is left of it, by an adapter, on one copy of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.checks import whole_number
from workbench.healing.adapters import new_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.heal import Healed, heal, lora_config
from workbench.healing.records import WEIGHTS, adapter_digests, checked_adapter, read_record, write_record
from workbench.healing.trainer import OnStep
from workbench.models.identity import describe_model
from workbench.models.layers import decoder_layers, kept_layers, layer_container, unwrap
from workbench.pruning.collapse import collapse_changes, layers_merged_away
from workbench.pruning.removal import removal_changes, two_states, without_layers
from workbench.recovery.attention import check_attention
from workbench.recovery.loss import Distillation, checked_loss, checked_temperature
from workbench.runs.files import atomic_folder


def recover(
    model: Any,
    tokenizer: Any,
    examples: pd.DataFrame | Sequence[str],
    *,
    removed: Iterable[int],
    merges: Sequence[tuple[int, int]] = (),
    merging: str = "equation",
    loss: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    start: str | Path | None = None,
    response: str = "reference",
    config: HealingConfig | None = None,
    out: str | Path,
    overwrite: bool = False,
    progress: bool | OnStep = True,
    report_to: str | Sequence[str] = (),
) -> Healed:
    """Train an adapter of the pruned model to do layer by layer what the whole model does (ITR 3.2).

    Student and teacher are one model: the student without the removed layers and with the adapter on, the
    teacher whole with the adapter off. Nothing of it is copied, and afterwards it is as before, bit by bit.
    What the terms are means of is said in ``recovery.loss``; the map of layers (appendix E) is the kept
    original indices in their order. States are those behind the layers, the last one before the final norm.

    Args:
        model: the whole model.
        tokenizer: its tokenizer.
        examples: texts, or a frame as for ``heal``: its own responses (``response="reference"``), or those of
            ``self_distill`` (``response="response"``). The terms but ``lm`` count every token, also of the
            prompt.
        removed: original indices of the layers the student lacks; none for a student that is the teacher.
        merges: of ``laco``: what was merged into which layer. Then ``removed`` are the layers merged away.
        merging: ``"equation"`` or ``"published"``, as for ``laco``.
        loss: weight of each term: ``hidden``, ``attention``, ``logits``, ``kl``, ``lm``; one that is not
            named is left out. None for the paper's: the first three, each 1.
        temperature: of ``kl``, which is multiplied by its square.
        start: folder of an adapter of the same layers to begin with; None for a fresh one.
        response: the column of the frame that is read.
        config: None for ``HealingConfig.preset("iterabre")``.
        out: folder of the adapter; restartable like ``heal``.
        overwrite: as for ``heal``.
        progress: as for ``heal``; rows have a column for each term, not yet multiplied by its weight.
        report_to: as for ``heal``.

    Returns:
        The adapter's folder and the log, as of ``heal``, with a column for each term.

    Raises:
        ValueError: before any work for a model that is pruned already, terms or weights that are none, fewer
            sequences than a batch, attention matrices that cannot be had; as ``without_layers``, ``heal``.
    """
    config, weights = config or HealingConfig.preset("iterabre"), checked_loss(loss)
    checked_temperature(temperature)
    check_teacher(model, weights)
    removed = sorted(removed)
    away = sorted(layers_merged_away(kept_layers(model), merges))
    if merges and removed != away:
        raise ValueError(f"removed must be the layers that merges take away, {away}, got {removed}")
    told: dict[str, Any] = {"teacher": describe_model(model)}
    if merges:
        told |= {"merges": [list(one) for one in merges], "merging": merging}
    if start is not None:
        told["start"] = adapter_digests(start)[WEIGHTS]
    changes = [*collapse_changes(model, merges, merging), *removal_changes(model, removed)]
    settings: Any = {"config": config, "overwrite": overwrite, "progress": progress, "report_to": report_to}
    with two_states(changes) as whole:
        kept = kept_layers(model)
        if start is not None and checked_adapter(start) != list(kept):
            raise ValueError(f"start: {start} is an adapter of other layers than {list(kept)}")
        of: Any = {"weights": weights, "temperature": temperature, "start": start, "told_of": told}
        objective = Distillation(model, whole, kept, **of)
        return heal(model, tokenizer, examples, response=response, out=out, objective=objective, **settings)


def check_teacher(model: Any, weights: Mapping[str, float]) -> None:
    """Refuse a teacher that cannot be one.

    Raises:
        ValueError: for a pruned model, or no attention matrices where they are asked for.
    """
    kept = kept_layers(model)
    if getattr(layer_container(model)[0].config, "kept_layers", None) is not None:
        raise ValueError(f"model must be whole, as the teacher; it is pruned already, to layers {list(kept)}")
    if "attention" in weights:
        check_attention(model)


def carry_adapter(model: Any, source: str | Path, removed: Iterable[int], out: str | Path) -> Path:
    """Write the adapter of a model that loses further layers: that of the layers that stay, bit by bit.

    So the next iteration starts exactly where the last one ended.

    Args:
        model: the whole model.
        source: folder of an adapter of more layers.
        removed: original indices of all layers the model lacks then.
        out: folder of the new adapter, replaced where it is there.

    Returns:
        ``out``.

    Raises:
        ValueError: for an adapter that lacks a layer that stays.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    record, trained = read_record(source), checked_adapter(source)
    config, held = HealingConfig(**record["config"]), load_file(Path(source) / WEIGHTS)
    with without_layers(model, removed):
        kept = list(kept_layers(model))
        if not set(kept) <= set(trained):
            raise ValueError(f"source: {source} is of layers {trained}, which lack some of {kept}")
        stack, here = _stack_name(model), describe_model(model)
        with (
            new_adapter(model, lora_config(model, config), config.seed) as peft,
            atomic_folder(Path(out)) as new,
        ):
            names = get_peft_model_state_dict(peft, save_embedding_layers=False)
            places = {place: trained.index(layer) for place, layer in enumerate(kept)}
            set_peft_model_state_dict(peft, {name: held[_moved(name, stack, places)] for name in names})
            peft.save_pretrained(new, save_embedding_layers=False)
            (new / "README.md").unlink(missing_ok=True)  # peft's model card
            same = ("config", "data", "cut", "left_out", "quantized")
            told = {name: record[name] for name in same if name in record}
            told |= {"model": here, "kept_layers": kept, "carried": record["sha256"][WEIGHTS]}
            write_record(new, told)
    return Path(out)


def _stack_name(model: Any) -> str:
    first = decoder_layers(model)[0]
    names = (name for name, module in unwrap(model).named_modules() if module is first)
    return str(next(names)).removesuffix("0")


def _moved(name: str, stack: str, places: Mapping[int, int]) -> str:
    """Return what a tensor of a layer is called in the adapter of more layers."""
    before, _, rest = name.partition(f".{stack}")
    place, _, part = rest.partition(".")
    return f"{before}.{stack}{places[whole_number(int(place), 'layer', 0)]}.{part}"
