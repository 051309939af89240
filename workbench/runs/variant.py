"""A variant: one state of a model that a run compares, small enough to be rebuilt by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from workbench.checks import is_whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}(?<!\.)")
_ALLOWED = "letters, digits and . _ - + =, beginning with a letter or digit, at most 100 characters"


@dataclass(frozen=True)
class Variant:
    """One state of a model that a table or a figure compares, small enough to be rebuilt by name.

    Attributes:
        name: short and unique in its run, such as ``base`` or ``pruned-distilled``.
        model: name, folder or hub id, as given to ``load_model``.
        revision: of the hub model, or None.
        removed: original indices of the layers taken out, ascending.
        adapter: folder of a LoRA adapter, or of a merge's tensors, relative to the run folder; or None.
        note: for the reader.
        merges: of ``laco``: ``(layer, count)``, the next ``count`` layers went into ``layer``; they are in
            ``removed``.
        merging: how, ``"equation"`` or ``"published"``; "" without merges.

    Raises:
        ValueError: for a name or a path that no file can have, or layers that are none.
    """

    name: str
    model: str
    revision: str | None = None
    removed: tuple[int, ...] = ()
    adapter: str | None = None
    note: str = ""
    merges: tuple[tuple[int, int], ...] = ()
    merging: str = ""

    def __post_init__(self) -> None:
        """Check the name and bring ``removed`` into one form."""
        _check_name("variant name", self.name)
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"model must be a name, a folder or a hub id, got {self.model!r:.80}")
        given = list(self.removed) if isinstance(self.removed, Iterable) else [None]
        layers = [int(layer) if is_whole(layer) else -1 for layer in given]
        if any(layer < 0 for layer in layers) or len(set(layers)) < len(layers):
            raise ValueError(f"removed must be different layer indices >= 0, got {self.removed!r}")
        object.__setattr__(self, "removed", tuple(sorted(layers)))
        pairs = [tuple(pair) for pair in self.merges]
        if not all(len(pair) == 2 and all(map(is_whole, pair)) for pair in pairs):
            raise ValueError(f"merges must be (layer, count) pairs, got {self.merges!r}")
        object.__setattr__(self, "merges", tuple((int(layer), int(count)) for layer, count in pairs))
        if self.adapter is not None:
            _check_path("adapter", self.adapter)


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{what} must be {_ALLOWED}, got {name!r}")


def _check_path(what: str, name: str) -> None:
    if not isinstance(name, str) or not all(map(_NAME.fullmatch, name.split("/"))):
        raise ValueError(f"{what} must be a path inside the run, each part of {_ALLOWED}; got {name!r}")
