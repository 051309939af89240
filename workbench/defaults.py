"""What notebooks take where a parameter is None: sets, tasks and sizes that fit model, data and machine.

The values are in ``defaults.toml``. They follow from the model, the device and the folder ``data`` alone,
never from a clock, so that a second run finds what the first one stored.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from workbench.checks import one_of
from workbench.data.files import at_home
from workbench.data.instructions import DEMO_INSTRUCTIONS
from workbench.data.sources import CORPORA, INSTRUCTION_SETS, in_folder
from workbench.data.texts import DEMO_TEXTS
from workbench.evaluation.offline import served, set_of
from workbench.evaluation.suites import LOCAL_SETS
from workbench.generation.prompts import context_length
from workbench.models.hooks import inference
from workbench.models.layers import number_of_layers, unwrap
from workbench.places import DEMO, short_name, toml_beside

_TABLES: dict[str, dict[str, Any]] = toml_beside(__file__)
PRESETS = tuple(_TABLES["presets"])
#: what of a run has defaults of its own beside those that all notebooks share
PARTS = tuple(_TABLES["parts"])
#: parameters that name sets, and those that name tasks
_SETS, _TASKS = _TABLES["parameters"]["sets"], _TABLES["parameters"]["tasks"]
#: parameters for which None means the function's own choice
_NONE = _TABLES["parameters"]["own"]
#: shares of the depth at which blocks of a model are compared: SDD's 2, 4, 6, 8, 10 of 32
_SHARES = [size / 32 for size in _TABLES["presets"]["sdd"]["sizes"]]
#: what a line about the work ahead is not worth: seconds
_SHORT = 20.0


def fitting(
    model: Any, *, data: str | Path | None = None, part: str | None = None, **asked: Any
) -> SimpleNamespace:
    """Return a notebook's parameters, those that are None chosen for the model; a line says which.

    The demo model gets the demo's sets and tasks, any other model public ones: from the folder `data` those
    that it holds, else from the hub. Without a GPU they are fewer and shorter. A value that is given is kept.

    Args:
        model: as loaded.
        data: folder with public sets as jsonl, or None.
        part: ``recovery``, ``merging`` or ``drafts``, whose defaults differ from those of other notebooks.
        **asked: parameters by their names in the notebooks (see ``defaults.toml``). A set or task of the demo
            is for the demo model; for another it has to be named.

    Returns:
        All of them as attributes.

    Raises:
        ValueError: for a name that has no default and no value, and a `data` that is no folder or holds none
            of the sets.
    """
    if data is not None and not at_home(str(data)).is_dir():
        raise ValueError(f"data must be a folder with public sets as jsonl, got {str(data)!r}, which is none")
    known = _known(model, part)
    if not is_demo(model) and (named := _of_demo(asked)):
        print(f"Of the demo's fictional land, taken because it is named: {', '.join(named)}", flush=True)
    chosen = {}
    for name, value in asked.items():
        default = value
        if value is None:
            one_of(name, [*known, *_NONE], "parameter")
            default = _computed(model, name, known.get(name))
            if data is not None and not is_demo(model):
                default = _there(name, default, data)
            if default is not None:
                chosen[name] = default
        asked[name] = _of_depth(model, name, None if default == "all" else default)
    if chosen:
        # lines end between parameters
        parts = [f"{name} = {value!r}".replace(" ", "\0") for name, value in chosen.items()]
        lines = textwrap.wrap(f"Chosen for {_name(model)}: {', '.join(parts)}", 110, break_long_words=False)
        print("\n".join(lines).replace("\0", " "), flush=True)
    return SimpleNamespace(**asked)


def _known(model: Any, part: str | None) -> dict[str, Any]:
    """Return the defaults for a model, those of a part before the shared ones."""
    names = ["demo"] if is_demo(model) else ["public", *(["public-cpu"] if _on_cpu(model) else [])]
    own = {} if part is None else _TABLES["parts"][one_of(part, PARTS, "part")]
    tables = [*(_TABLES[name] for name in names), *(own.get(name, {}) for name in names)]
    return {name: value for table in tables for name, value in table.items()}


def is_demo(model: Any) -> bool:
    """Return whether a model is the shipped one, by the name it was loaded under."""
    return _name(model) in ("demo", short_name(DEMO / "model"))


def story_model(name: str, data: str | Path | None) -> str:
    """Return the model of notebook 00: the one that is asked for where it has public sets, else the demo.

    Raises:
        ValueError: for an empty name.

    >>> story_model("smollm2", None)
    Notebook 00 tells the demo model's story; for smollm2 give data= a folder with public sets.
    'demo'
    """
    if not name.strip():
        raise ValueError(f"name must be that of a model, got {name!r}")
    if name == "demo" or data is not None:
        return name
    asked = f"for {name} give data= a folder with public sets."
    print(f"Notebook 00 tells the demo model's story; {asked}", flush=True)
    return "demo"


def _of_demo(parameters: Mapping[str, Any]) -> list[str]:
    """Return the demo's sets and tasks among parameters."""
    demo, found = {*DEMO_TEXTS, *DEMO_INSTRUCTIONS}, []
    for name in (*_SETS, *_TASKS):
        values = _each(parameters.get(name))
        found += [one for one in values if one in demo or (name in _TASKS and str(one).startswith("demo"))]
    return list(dict.fromkeys(found))


def _each(value: Any) -> list[Any]:
    """Return the sets or tasks of a parameter: one, several, or a dict from labels to them."""
    if isinstance(value, Mapping):
        return list(value.values())
    return [value] if isinstance(value, str) else list(value or ())


def preset_parameters(name: str) -> dict[str, Any]:
    """Return what a paper states, as values for the notebooks' parameters (``--preset``).

    Raises:
        ValueError: for an unknown name.

    >>> preset_parameters("sdd")["sizes"]
    [2, 4, 6, 8, 10]
    """
    return dict(_TABLES["presets"][one_of(name, PRESETS, "preset")])


def work_ahead(
    model: Any,
    what: str,
    *,
    rows: int = 0,
    tokens: float,
    passes: float = 1.0,
    cost: float = 1.0,
    texts: Sequence[str] = (),
) -> None:
    """Say before a long stage how many rows and passes it takes, and roughly how long.

    A short stage gets no line. The speed is measured once a model, by one small batch, so the time is a
    guess within a factor of two or so.

    Args:
        model: as it will run.
        what: the stage.
        rows: texts, prompts or items.
        tokens: of a row, about.
        passes: through the model for each row.
        cost: of a token against reading it: 3 for training, 1 for reading.
        texts: the rows themselves, at four letters a token, and ``tokens`` of each at most.

    Raises:
        ValueError: for a number below 0.
    """
    if texts:
        rows, tokens = len(texts), sum(min(tokens, len(text) / 4) for text in texts) / len(texts)
    for which, value in {"rows": rows, "tokens": tokens, "passes": passes, "cost": cost}.items():
        if value < 0:
            raise ValueError(f"{which} must be at least 0, got {value!r}")
    seconds = rows * tokens * passes * cost / tokens_per_second(model)
    if seconds >= _SHORT:
        times = f" x {passes:,.0f} passes" if passes > 1 else ""
        work = f"{what}: {rows:,} rows of about {tokens:,.0f} tokens{times}, roughly {_duration(seconds)}"
        print(f"{work} (what is stored is not computed again)", flush=True)


def tokens_per_second(model: Any) -> float:
    """Return how many tokens the model reads in a second, measured once on 2 x 64 tokens and kept with it."""
    base = unwrap(model)
    if not hasattr(base, "_tokens_per_second"):
        entries = base.get_input_embeddings().weight.shape[0]
        ids = torch.arange(128, device=base.device).reshape(2, 64) % entries
        times = []
        with inference(model):
            for _ in range(3):
                start = time.perf_counter()
                float(model(ids).logits[0, -1, 0])  # waits for a GPU
                times.append(time.perf_counter() - start)
        base._tokens_per_second = ids.numel() / min(times)
    speed: float = base._tokens_per_second
    return speed


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _name(model: Any) -> str:
    base = unwrap(model)
    return str(getattr(base, "_source", {}).get("id") or base.config._name_or_path or type(base).__name__)


def _on_cpu(model: Any) -> bool:
    return bool(unwrap(model).device.type == "cpu")


def _computed(model: Any, name: str, value: Any) -> Any:
    """Return a default that the model decides: sizes by its depth, lengths by its context."""
    n_layers, context = number_of_layers(model), context_length(model)
    if name in ("sizes", "depth_sizes", "block_sizes") and value in ("auto", "few"):
        return sorted({max(1, round(share * n_layers)) for share in _SHARES[: 3 if value == "few" else None]})
    if name == "block_size" and value == "auto":
        return max(1, round(_SHARES[2] * n_layers))
    if name in ("max_length", "loss_length") and value is not None:
        return min(value, context or value)
    return None if value == "auto" else value


def _of_depth(model: Any, name: str, value: Any) -> Any:
    """Return how many layers stay, and the lowest that LaCo looks at: as many, or a share of the depth."""
    if name == "laco_grid" and isinstance(value, dict) and isinstance(value.get("lowest"), float):
        return value | {"lowest": round(value["lowest"] * number_of_layers(model))}
    if name != "layers_left" or not isinstance(value, float) or not 0 < value < 1:
        return value
    n_layers = number_of_layers(model)
    return min(n_layers - 1, max(1, round(value * n_layers)))


def _there(name: str, value: Any, data: str | Path) -> Any:
    """Return those of the default sets and tasks that the folder has."""
    if name in _TASKS:
        return _some(
            [task for task in value if (key := set_of(task)) and served(key, data)], name, data, LOCAL_SETS
        )
    if name not in _SETS or value is None:
        return value
    known = {**CORPORA, **INSTRUCTION_SETS}
    held = [one for one in _each(value) if in_folder(one, known, data)]
    if isinstance(value, Mapping):
        _some(held, name, data, known)
        return {label: one for label, one in value.items() if one in held}
    if not held and isinstance(value, str):
        learned = {one: held for one, held in INSTRUCTION_SETS.items() if held.split is None}
        pool = {"instructions": learned, "prompt_set": INSTRUCTION_SETS}.get(name, CORPORA)
        held = [one for one in pool if in_folder(one, known, data)]
    held = _some(held, name, data, known)
    return held[0] if isinstance(value, str) else held


def _some(found: list[str], name: str, data: str | Path, known: Mapping[str, Any]) -> list[str]:
    if not found:
        raise ValueError(f"data must hold sets for {name}, {data} has none of {', '.join([*known][:8])}, ...")
    return found
