"""How an adapter is trained: the settings of the papers, and what may be changed in them (no torch)."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any

from workbench.checks import one_of, whole_number
from workbench.places import toml_beside

#: our name -> the Trainer's
SCHEDULES = {"cosine": "cosine", "constant": "constant_with_warmup", "linear": "linear"}
#: what GRO B.1 sets otherwise for some models
OF_MODEL = ("rank", "learning_rate", "max_length")
_LIMITS = toml_beside(__file__, "limits")


class _AsRank(float):
    """An alpha that equals the rank, and follows it where the rank is changed."""


class _UpTo(int):
    """A number of updates that becomes less where there are few."""

    def __str__(self) -> str:
        return f"up to {int(self)}"


@dataclass(frozen=True)
class HealingConfig:
    """How an adapter is trained; ``HealingConfig.preset("sdd" | "gro" | "iterabre" | "demo")`` makes one.

    Attributes:
        rank: of the LoRA matrices.
        alpha: LoRA's scale is ``alpha / rank``; None for twice the rank, ``"rank"`` for the rank itself, also
            where ``replace`` or a grid changes the rank.
        dropout: of the adapter's input, 0..1.
        targets: ``"all-linear"``, ``"ffn"`` or a list of module names (see ``lora_targets``).
        dora: learn the length of each output direction apart (DoRA).
        rslora: scale by ``alpha / sqrt(rank)`` instead (rank-stabilised LoRA).
        learning_rate: the peak.
        epochs: how often every example is seen; may be a fraction. Not used when ``max_steps`` is given.
        max_steps: number of updates, or None.
        batch_size: examples an update, over all processes and accumulated micro-batches. Where an epoch ends
            inside an update, the next epoch fills it up; only the last update of all can be smaller.
        micro_batch_size: examples that are in memory at once; None for the largest divisor of
            ``batch_size`` whose tokens fit into the GPU's free memory, on a CPU up to 16.
        max_length: tokens of an example at most; None for 2048, or the model's context where that is shorter.
        warmup_steps: updates in which the learning rate rises from 0 to its peak; fewer than there are.
            ``"up to 4"``, as presets have it, is at most half of the updates.
        schedule: after that ``"cosine"`` or ``"linear"`` to zero, or ``"constant"``.
        weight_decay: of AdamW.
        max_grad_norm: gradients are cut to this norm; 0 for never.
        seed: of the adapter's first weights, the order of the examples, and dropout.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        deterministic: only deterministic kernels (``transformers.enable_full_determinism``), slower on a GPU.
        save_steps: updates between checkpoints; None for ten over the whole training.
        packing: batches in random order whose short samples share a row without seeing each other, instead
            of batches of samples of like length. Refused where the model cannot keep them apart exactly.
        concatenate: of plain texts: one behind the other, each ended by its EOS, cut into rows of
            ``max_length`` tokens; False for a row a text, truncated.
        loss_chunk: positions whose logits are in memory at once.
        compiled: compile the layers one by one; None for where it pays (a GPU and minutes of work, and not
            with ``deterministic``).
        captured: run each update as blocks of fixed shape, in which short samples share rows without seeing
            each other, each shape captured once as a CUDA graph; the loss is the same, summed in another
            order. None for where it pays: on a GPU, for layers of up to 1.5 billion parameters and samples of
            up to 768 tokens on average, without dropout, checkpointing and ``micro_batch_size``.

    Raises:
        ValueError: for a name that is no field, and a value that cannot be trained with.
    """

    rank: int = 8
    alpha: float | str | None = None
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    learning_rate: float = 1e-4
    epochs: float = 5.0
    max_steps: int | None = None
    batch_size: int = 64
    micro_batch_size: int | None = None
    max_length: int | None = None
    warmup_steps: int | str = 0
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
    captured: bool | None = None
    dora: bool = False
    rslora: bool = False
    concatenate: bool = True

    def __new__(cls, *_: Any, **settings: Any) -> HealingConfig:
        """Refuse a name that is no field (also for ``dataclasses.replace``)."""
        if unknown := ", ".join(sorted(settings.keys() - cls.__dataclass_fields__.keys())):
            raise ValueError(f"{unknown} is no field of HealingConfig: {', '.join(cls.__dataclass_fields__)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        for name, value in vars(self).items():
            if value is not None or type(self).__dataclass_fields__[name].default is not None:
                object.__setattr__(self, name, _checked(name, value))
        if self.alpha == "rank" or isinstance(self.alpha, _AsRank):
            object.__setattr__(self, "alpha", _AsRank(self.rank))
        micro = self.micro_batch_size or 1
        if self.batch_size % micro:
            raise ValueError(f"micro_batch_size must divide batch_size={self.batch_size}, got {micro}")

    @classmethod
    def preset(cls, name: str, *, model: str | None = None, **changes: Any) -> HealingConfig:
        """Return a paper's settings.

        ``sdd`` (A.5): rank 8, 5 epochs, batch 64, learning rate 1e-4; targets, scale and schedule are not
        stated, so **ours**: all linear layers, alpha = 2 x rank, cosine. ``gro`` (B.1): FFN layers, alpha =
        rank, dropout 0.05, 5000 updates of 16 rows of 2048 tokens of C4, cosine with 100 warm-up steps, full
        determinism; rank 64 and 3e-4 unless ``model`` is one that the paper lists otherwise. The paper
        trains on 4-bit weights: load the model with ``quantization="nf4"``. It truncated each text and
        counts 16 x 5000 x ``max_length`` tokens, which only full rows hold, so ours are (``concatenate``).
        ``demo``: heals the demo model in about a minute on two cores.

        Args:
            name: ``sdd``, ``gro`` or ``demo``.
            model: for ``gro``: the hub id of one of the paper's models, or the path of a folder named so. Of
                another model, its rank, learning rate and length are a guess, with a warning.
            **changes: fields to set otherwise.

        Raises:
            ValueError: for an unknown name or field; for ``gro`` without ``model``, where rank, learning
                rate and length are not all given either.

        >>> HealingConfig.preset("gro", model="mistralai/Mistral-7B-v0.1", seed=1).learning_rate
        3e-06
        """
        presets = toml_beside(__file__, "presets")
        one_of(name, presets, "preset")
        of_model = _of_model(model, changes) if name == "gro" else {}
        return cls(**(presets[name] | of_model | changes))

    def warmup(self, steps: int) -> int:
        """Return for how many of so many updates the learning rate rises.

        Raises:
            ValueError: for a number that was given and is not below that of the updates.

        >>> HealingConfig(warmup_steps="up to 4").warmup(6), HealingConfig(warmup_steps=4).warmup(6)
        (3, 4)
        """
        asked = int(self.warmup_steps)
        if isinstance(self.warmup_steps, _UpTo):
            return min(asked, steps // 2)
        if asked >= max(steps, 1):
            raise ValueError(f"warmup_steps must be below the {steps} updates, got {asked}")
        return asked

    def written(self) -> dict[str, Any]:
        """Return the settings as JSON holds them, to be read back as they are."""
        warmup = str(self.warmup_steps) if isinstance(self.warmup_steps, _UpTo) else self.warmup_steps
        return asdict(self) | {"warmup_steps": warmup}

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide which adapter comes out: those of memory and speed by default.

        >>> HealingConfig(compiled=True, save_steps=5).deciding() == HealingConfig().deciding()
        True
        """
        neutral = ("save_steps", "loss_chunk", "compiled", "captured", "micro_batch_size")
        neutral += ("gradient_checkpointing", "deterministic", *(("epochs",) if self.max_steps else ()))
        return asdict(replace(self, **{name: getattr(HealingConfig, name) for name in neutral}))


def _checked(name: str, value: Any) -> Any:
    """Return the value of a field as its own type."""
    if name == "warmup_steps" and (most := re.fullmatch(r"up to (\d{1,9})", str(value))):
        return _UpTo(most[1])
    if name in _LIMITS["whole"]:
        return whole_number(value, name, *_LIMITS["whole"][name])
    if name in _LIMITS["numbers"]:
        return _number(value, name, *_LIMITS["numbers"][name])
    if name == "alpha":
        return value if value == "rank" or isinstance(value, _AsRank) else _number(value, name, 0.0, False)
    if name == "schedule":
        return one_of(value, SCHEDULES, name)
    if name == "targets":
        return _checked_targets(value)
    if type(value).__name__ not in ("bool", "bool_"):  # of Python or numpy
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _number(value: Any, name: str, least: float, inclusive: bool, below: float = math.inf) -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if number and (least < value < below or (inclusive and value == least)):
        return float(value)
    allowed = f"at least {least:g}" if inclusive else f"above {least:g}"
    also = ", or 'rank'" if name == "alpha" else ""
    below_too = f" and below {below:g}" if below < math.inf else " and finite"
    raise ValueError(f"{name} must be a number {allowed}{below_too}{also}, got {value!r}")


def _checked_targets(value: Any) -> str | list[str]:
    if isinstance(value, str) and value in ("all-linear", "ffn"):
        return value
    names = [] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"targets must be 'all-linear', 'ffn' or a list of module names, got {value!r}")
    return names


def _of_model(model: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Return what GRO B.1 sets for a model, found by its hub id or the last part of it."""
    listed = toml_beside(__file__, "gro_models")
    left = ", ".join(name for name in OF_MODEL if name not in changes)
    if model is None and left:
        way_out = f"give model=, one of {', '.join(listed)} or another, or give {left}"
        raise ValueError(f"preset 'gro' sets {left} by the model: {way_out}")
    wanted = str(model).rstrip("/").rpartition("/")[2].lower()
    for name, settings in listed.items():
        if wanted == name.rpartition("/")[2].lower():
            return dict(settings)
    if left:
        said = f"preset 'gro': the paper (B.1) does not list {model!r}, so {left} are its commonest values"
        warnings.warn(said, stacklevel=3)
    return {}
