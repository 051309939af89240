"""Models in GGUF files, and the small real one that the Python index carries: read as full weights.

transformers does the reading; the `gguf` package knows the file format. What comes out is a model like any
other: its 4-bit or 8-bit values are those of the file, held in the dtype that was asked for.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.checks import told
from workbench.models.checkpoints import from_hub
from workbench.places import models_folder

#: a name for `load_model`, and what it stands for here and on the hub
SMOLLM2, SMOLLM2_FOLDER = "smollm2", "smollm2-135m-instruct"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


def smollm2(revision: str | None = None) -> str:
    """Return the folder that `make smollm2` writes, else the hub id of the same model, not quantised.

    Raises:
        ValueError: when neither is there; it says both ways.
    """
    folder = models_folder() / SMOLLM2_FOLDER
    if (folder / "config.json").is_file() and revision is None:
        return str(folder)
    with told(f"name {SMOLLM2!r} is not here; `make smollm2` takes it from the Python index", ValueError):
        return from_hub(SMOLLM2_HUB, revision)


def is_gguf(source: str | Path) -> bool:
    """Return whether a path names a GGUF file, by its ending.

    >>> is_gguf("models/m.Q4_1.gguf"), is_gguf("models")
    (True, False)
    """
    return str(source).lower().endswith(".gguf")


def gguf_options(source: str, quantization: str | None) -> tuple[str, dict[str, Any]]:
    """Return where transformers looks and what it is told, for a GGUF file; a folder stays as it is.

    Raises:
        ValueError: without the package that reads it, for a damaged file, or 4 bits asked of weights that had
            fewer.
    """
    if not is_gguf(source):
        return source, {}
    if quantization:
        way_out = "load it, and save_pretrained for a folder"
        raise ValueError(f"quantization must be None for a GGUF file, got {quantization!r}: {way_out}")
    if find_spec("gguf") is None:
        raise ValueError(f"{source} is a GGUF file, which needs the package gguf: pip install gguf")
    with open(source, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{source} is no GGUF file: it does not begin with 'GGUF'; download it again")
    return str(Path(source).parent), {"gguf_file": Path(source).name}


def dequantised() -> dict[str, Any]:
    """Return what tells transformers to unpack the weights; releases before 5.20 know nothing else."""
    import transformers

    config: Any = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}


def full_weights_(model: Any, name: str) -> None:
    """Make a model that was read from a GGUF file one like any other, and say so in one line.

    transformers calls it quantised, though its weights are full, and then refuses to save it.
    """
    model.hf_quantizer = None
    model.is_quantized = False
    for entry in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, entry):
            delattr(model.config, entry)
    model.config._name_or_path, model.config.architectures = name, [type(model).__name__]
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"{Path(name).name}: GGUF weights, dequantised to {dtype}", flush=True)
