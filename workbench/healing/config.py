"""How an adapter is trained: the settings of the papers, and what may be changed in them (no torch)."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from workbench.checks import one_of, whole_number

#: our name -> the Trainer's
SCHEDULES = {"cosine": "cosine", "constant": "constant_with_warmup", "linear": "linear"}
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class HealingConfig:
    """How an adapter is trained. ``HealingConfig.preset("sdd" | "gro" | "demo")`` gives the papers' settings.

    Attributes:
        rank: of the LoRA matrices.
        alpha: LoRA's scale is ``alpha / rank``; None for twice the rank.
        dropout: of the adapter's input, 0..1.
        targets: ``"all-linear"``, ``"ffn"`` or a list of module names (see ``lora_targets``).
        learning_rate: the peak.
        epochs: how often every example is seen; may be a fraction. Not used when ``max_steps`` is given.
        max_steps: number of updates, or None.
        batch_size: examples an update, over all processes and accumulated micro-batches. Where an epoch ends
            inside an update, the next epoch fills it up; only the last update of all can be smaller.
        micro_batch_size: examples that are in memory at once; None for the largest divisor of
            ``batch_size`` up to 16.
        max_length: tokens of an example at most; None for 2048, or the model's context where that is shorter.
        warmup_steps: updates in which the learning rate rises to its peak.
        schedule: after that ``"cosine"`` or ``"linear"`` to zero, or ``"constant"``.
        weight_decay: of AdamW.
        max_grad_norm: gradients are cut to this norm; 0 for never.
        seed: of the adapter's first weights, the order of the examples, and dropout.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        deterministic: only deterministic kernels (``transformers.enable_full_determinism``), slower on a GPU.
        save_steps: updates between checkpoints; None for ten over the whole training.
        packing: batches in random order whose short samples share a row without seeing each other, instead
            of batches of samples of like length. Refused where the model cannot keep them apart exactly.
        loss_chunk: positions whose logits are in memory at once.
        compiled: compile the layers one by one; None for where it pays (a GPU and minutes of work, and not
            with ``deterministic``).
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    learning_rate: float = 1e-4
    epochs: float = 5.0
    max_steps: int | None = None
    batch_size: int = 64
    micro_batch_size: int | None = None
    max_length: int | None = None
    warmup_steps: int = 0
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    gradient_checkpointing: bool = False
    deterministic: bool = False
    save_steps: int | None = None
    packing: bool = False
    loss_chunk: int = 1024
    compiled: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        sizes = ("rank", "max_steps", "batch_size", "micro_batch_size", "max_length", "save_steps")
        for name in (*sizes, "loss_chunk"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole_number(value, name))
        for name, low, high in (("learning_rate", 0, 10), ("epochs", 0, 1e6), ("dropout", -1e-9, 1)):
            if not low < (value := getattr(self, name)) < high:
                raise ValueError(f"{name} must be between {max(low, 0)} and {high:g}, got {value!r}")
        one_of(self.schedule, SCHEDULES, "schedule")
        if self.batch_size % (self.micro_batch_size or 1):
            raise ValueError(
                f"micro_batch_size must divide batch_size={self.batch_size}, got {self.micro_batch_size}"
            )

    @classmethod
    def preset(cls, name: str, *, model: str | None = None, **changes: Any) -> HealingConfig:
        """Return a paper's settings.

        ``sdd`` (A.5): rank 8, 5 epochs, batch 64, learning rate 1e-4; targets, scale and schedule are not
        stated, so **ours**: all linear layers, alpha = 2 x rank, cosine. ``gro`` (B.1): FFN layers, alpha =
        rank, dropout 0.05, 5000 updates of 16 texts of 2048 tokens, cosine with 100 warm-up steps, full
        determinism; rank 64 and 3e-4 unless ``model`` is one that the paper lists otherwise; load the model
        with ``quantization="nf4"`` as the paper does. ``demo``: heals the demo model in about a minute on
        two cores.

        Args:
            name: ``sdd``, ``gro`` or ``demo``.
            model: for ``gro``, the hub id of one of the paper's models.
            **changes: fields to set otherwise.

        >>> HealingConfig.preset("gro", model="mistralai/Mistral-7B-v0.1", seed=1).learning_rate
        3e-06
        """
        presets = tomllib.loads((_HERE / "presets.toml").read_text(encoding="utf-8"))
        one_of(name, presets, "preset")
        unknown = set(changes) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))} is no field of HealingConfig")
        of_model = {}
        if name == "gro" and model is not None:
            of_model = tomllib.loads((_HERE / "gro_models.toml").read_text(encoding="utf-8")).get(model, {})
        return cls(**(presets[name] | of_model | changes))

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide which adapter comes out: those of memory and speed by default.

        >>> HealingConfig(compiled=True, save_steps=5).deciding() == HealingConfig().deciding()
        True
        """
        return asdict(replace(self, save_steps=None, loss_chunk=1024, compiled=None))
