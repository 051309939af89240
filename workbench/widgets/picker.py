"""The block picker: heatmaps of distance, damage and more, to choose from by click, key, field or call.

``BlockPicker`` is a small state object: ``start``, ``size`` and ``layers`` say what is chosen, the page
mirrors them, and every click has a method that does the same. The page is in ``static/``; it loads nothing
from a network, and this file no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import pandas as pd
import traitlets as tr

from workbench.arguments import check_frame, looked_at
from workbench.checks import checked, first_line, whole_number
from workbench.distances.blocks import Layers, checked_blocks, format_layers, layers_of
from workbench.widgets import export
from workbench.widgets.choice import LayerChoice
from workbench.widgets.looks import Look, Looks
from workbench.widgets.metrics import layer_savings, layers_of_model, metrics_of
from workbench.widgets.picture import picture
from workbench.widgets.presets import Presets
from workbench.widgets.still import Still

if TYPE_CHECKING:
    from workbench.runs.run import Run

_STATIC = Path(__file__).parent / "static"
#: the page, in the order in which its files build on each other; together they are one module
_SCRIPTS = ("base", "blocks", "kernel", "heatmap", "strip", "tables", "block_picker")


class BlockPicker(LayerChoice):
    """Choose layers to remove on heatmaps of what their removal costs.

    Attributes:
        start: trait, first removed layer (original number); None where the layers are not one block.
        size: trait, number of layers removed.
        layers: trait, the removed layers as they are shown; observe this one to hear of a choice once. It is
            set by ``choose`` and ``choose_layers``.
        auto_look: trait, whether every choice starts a look.
    """

    _esm = "\n".join((_STATIC / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    _css = _STATIC / "block_picker.css"

    auto_look = tr.Bool(False).tag(sync=True)

    _title = tr.Unicode().tag(sync=True)
    _sizes = tr.List(tr.Int()).tag(sync=True)
    _metrics: Any = tr.List().tag(sync=True)
    # the numbers of every measure, see Metric.packed: 26 kB each at 80 layers, 190 kB as JSON
    _cells = tr.Bytes().tag(sync=True)
    _parameters: Any = tr.List().tag(sync=True)
    _flops: Any = tr.List().tag(sync=True)
    _totals = tr.List(default_value=[0, 0]).tag(sync=True)
    _presets: Any = tr.List().tag(sync=True)
    _kept: Any = tr.List().tag(sync=True)
    _used = tr.Dict().tag(sync=True)
    _look = tr.Dict().tag(sync=True)
    _can_look = tr.Bool(False).tag(sync=True)
    _still_name = tr.Unicode().tag(sync=True)

    # the base class closes a widget whose constructor failed
    _looks: Looks | None = None
    _still: Still

    def __init__(
        self,
        distances: pd.DataFrame,
        damage: pd.DataFrame | None = None,
        influence: pd.DataFrame | None = None,
        similarity: pd.DataFrame | None = None,
        *,
        frames: Mapping[str, pd.DataFrame] | None = None,
        savings: pd.DataFrame | None = None,
        presets: Mapping[str, Sequence[int]] | None = None,
        start: int | None = None,
        size: int | None = None,
        seed: int = 0,
        use: Callable[[BlockPicker], Any] | None = None,
        run: Any = None,
        title: str = "Choose a block of layers to remove",
        **widget_options: Any,
    ) -> None:
        """Make a picker.

        Args:
            distances: frame of ``angular_distances``: ``start``, ``size``, ``distance``, and ``ci_low``,
                ``ci_high`` where there. The block of all layers is left out: something has to stay.
            damage: frame of ``block_damage`` of the same model, drawn beside the distances.
            influence: frame of ``block_influence``; a block's is the sum over its layers.
            similarity: frame of ``removal_similarity``; what it loses, summed over the layers of a block.
            frames: further measures by name, by ``start`` and ``size`` or by ``layer``, low = removable.
            savings: frame of ``block_savings`` of the same model, to show what a block saves.
            presets: layers by name to choose with one click, such as ``{"IteRABRe": (3, 9)}``.
            start: first choice; None means the nearest block of its size.
            size: of the first choice; None means 2, or the least size that the frame holds.
            seed: of the ready choice "random".
            use: called with the picker by "Use this block"; what it returns (a path) is shown.
            run: of ``open_run``; "Use this block" then writes ``selection.json`` there.
            title: shown above, and what a screen reader calls the picker.
            **widget_options: as every ipywidget takes them, such as ``layout``.

        Raises:
            ValueError: for missing columns, repeated blocks, a frame that leaves open which layers the model
                has, a frame of another model, or a first choice that the frame does not hold.
        """
        self._still = Still(f"bp-still-{uuid4().hex[:12]}", self.picture, self._words, self._tell_all)
        for name, given in (("distances", distances), ("savings", savings)):
            if isinstance(given, pd.DataFrame):
                check_frame(name, given)
        frame = checked_blocks(distances, "distance", "distances")
        layers = layers_of_model(frame)
        self._frame = checked(frame[frame["size"] < len(layers)], [], "distances below the size of the model")
        self._blocks = set(zip(self._frame["start"].tolist(), self._frame["size"].tolist(), strict=True))
        self._measured = metrics_of(self._frame, damage, influence, similarity, frames, layers)
        self._ready = Presets(self._measured, layers, presets, whole_number(seed, "seed", least=0))
        self._write = use if use is not None else _writes_to(run)
        self._past: list[Layers] = []
        self._next: list[Layers] = []
        saved = {} if savings is None else layer_savings(savings, layers)
        sizes = sorted({size for _, size in self._blocks})
        size = size if size is not None else (2 if 2 in sizes else sizes[0])
        start = start if start is not None else self._nearest(size)
        self._check(start, size)
        told, packed = zip(*(metric.packed(layers, sizes) for metric in self._measured), strict=True)
        first = layers_of(start, size, layers=layers)
        with self._hand():
            super().__init__(
                **{"start": start, "size": size, "layers": first, "_chosen": list(first)},
                **{"_title": title, "_layers": layers, "_sizes": sizes, "_presets": self._ready.names},
                **{"_metrics": list(told), "_cells": b"".join(packed), "_still_name": self._still.name},
                **saved,
                **widget_options,
            )
        self._looks = Looks(self._show_look, self._show_kept)
        self.on_msg(self._on_message)

    def keep(self, layers: Iterable[int] | None = None) -> pd.DataFrame:
        """Keep layers beside the others, to compare; None means those chosen now. Returns ``kept``."""
        kept = list(self.layers if layers is None else self._checked(layers))
        if kept not in [row["layers"] for row in self._kept]:
            self._kept = [*self._kept, self._with_losses({"layers": kept})]
        return self.kept

    def drop(self, start: int | Iterable[int], size: int | None = None) -> pd.DataFrame:
        """Take a block, or a set of layers, out of those kept; returns ``kept``."""
        gone: Any = layers_of(cast(int, start), size, layers=self._layers) if size is not None else start
        gone = list(self._checked(gone))
        self._kept = [row for row in self._kept if row["layers"] != gone]
        return self.kept

    @property
    def kept(self) -> pd.DataFrame:
        """Kept choices in order: layers, measures with their intervals, shares saved, losses seen."""
        frame = pd.DataFrame([self._facts(tuple(row["layers"])) for row in self._kept])
        return frame.astype({"start": "Int64"}) if len(frame) and frame["start"].hasnans else frame

    def compare(self, *layer_sets: Iterable[int]) -> pd.DataFrame:
        """Keep sets of layers, look at all that are kept on the same texts, and return ``kept``.

        Raises:
            ValueError: for layers that the model does not have, and when ``look_with`` was not called.
        """
        for layers in [self._checked(layers) for layers in layer_sets or (self.layers,)]:
            self.keep(layers)
        self._look_kept().result()
        return self.kept

    def use(self) -> Layers:
        """Use what is chosen now, as the button does: it is written where the picker was told to write."""
        written = "" if self._write is None else self._write(self)
        where = written.name if isinstance(written, Path) else str(written or "")
        self._used = {"layers": list(self.layers), "where": where}
        self._still.now()
        return self.layers

    def settle(self) -> Layers:
        """Use what is chosen now, unless something is in use already; returns the layers in use."""
        return self.used or self.use()

    @property
    def used(self) -> Layers | None:
        """The layers that "Use this block" wrote, None before."""
        return tuple(self._used["layers"]) if self._used else None

    @property
    def touched(self) -> bool:
        """Whether anything was chosen since the picker was made."""
        return bool(self._past or self._next)

    def reading(self) -> str:
        """Say in words what is used, what that does, where it is saved, what is shown and kept."""
        facts, where = self._facts(self.used or self.layers), self._used.get("where")
        return export.reading(facts, self.used, where, self.layers, self.touched, self._kept)

    def selection(self) -> dict[str, Any]:
        """Return the choice and the kept ones as dicts and lists, as ``save`` writes it."""
        chosen = {"layers": list(self.layers), "n_layers": len(self._layers), **self._facts(self.layers)}
        return {**chosen, "kept": [self._facts(tuple(row["layers"])) for row in self._kept]}

    @looked_at
    def save(self, run: Run) -> Path:
        """Write ``selection.json`` to a run, from where the next notebooks read it."""
        return Path(run.write_json("selection.json", self.selection(), distances=self._frame))

    def export(self, form: str = "python") -> str:
        """Return the choice as text: a line of ``"python"``, ``"json"``, or a picture (``"svg"``)."""
        return export.as_text(form, self.selection(), self.picture)

    def picture(self) -> str:
        """Return a picture of the picker as SVG: the layers, distance and damage, the choice."""
        shown = [metric for metric in self._measured if metric.name in ("distance", "damage")]
        return picture(shown, self._layers, self.layers, self._title)

    def figure(self, layers: Iterable[int] | None = None, **settings: Any) -> Any:
        """Return ``distance_heatmap`` with each block of the layers framed; None means those chosen now."""
        shown = self.layers if layers is None else self._checked(layers)
        return export.figure(self._frame, shown, self._layers, **settings)

    def look_with(self, look: Look, *, auto: bool | None = None) -> BlockPicker:
        """Give the picker what it computes about layers before they are cut.

        What was seen with another look is forgotten: it was another model, other texts or another question.

        Args:
            look: called in a thread as ``look(layers, cancelled)``. It returns a dict with ``base_loss``,
                ``loss`` (nats per token), ``prompt``, ``base_text``, ``text``, or None when ``cancelled()``
                turned true, which it should ask for between batches. ``workbench.looking`` makes one.
            auto: look at every choice; None is as False.

        Returns:
            The picker.
        """
        if not callable(look):
            raise ValueError(f"look must be a function such as looking(model, ...), got {look!r:.80}")
        self._looking.use(look)
        self._can_look, self.auto_look = True, bool(auto)
        self._show_kept()
        return self

    def look(self, layers: Iterable[int] | None = None) -> Future[Any]:
        """Look at layers, or at the present choice, in a thread and show what came out.

        It cancels a look at others, and is cancelled when another choice is made.

        Returns:
            A future: ``.result()`` waits for the dict that ``look`` made; it raises what the look raised, and
            ``CancelledError`` when it was cancelled before it began; None when cancelled after.

        Raises:
            ValueError: when ``look_with`` was not called.
        """
        return self._looking.start(self.layers if layers is None else self._checked(layers))

    def cancel(self) -> None:
        """Cancel the look that is running."""
        self._looking.cancel()

    def close(self) -> None:
        """Cancel a running look and take the widget off the page."""
        if self._looks is not None:
            self._looks.close()
        self._still.close()
        super().close()

    @property
    def _looking(self) -> Looks:
        assert self._looks is not None
        return self._looks

    def _tell_all(self) -> None:
        self.send_state("_chosen")  # to other windows: the page that chose gets no echo

    def _moved(self) -> None:
        self._still.later()
        self._looking.cancel(by_choice=True)
        if self.auto_look and self._looking.able:
            self.look()

    def _look_kept(self) -> Future[Any]:
        return self._looking.start(*(tuple(row["layers"]) for row in self._kept), stays=True)

    def _on_message(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        """Do what a button or key of the page asks for, and answer, so that it knows that it was heard."""
        answer: dict[str, Any] = {"heard": content.get("id")}
        try:
            answer |= self._do(content) or {}
        except Exception as error:  # said on the page: nothing that one clicks fails in silence
            answer["why"] = first_line(error)
        self.send(answer)

    def _do(self, content: dict[str, Any]) -> dict[str, Any] | None:
        action, layers = content.get("do"), content.get("layers")
        if action == "drop":
            self.drop(layers or ())
        elif action in ("keep", "look", "use", "cancel", "undo", "redo"):
            if action in ("keep", "look", "use"):  # the page's own change of the choice may arrive later
                self.choose_layers(layers or ())
            getattr(self, action)()
        elif action == "look_kept":
            self._look_kept()
        elif action == "preset":
            self.choose_preset(content["name"], content.get("size"))
        elif action == "picture":
            return {"picture": self.picture()}
        return None

    def _ipython_display_(self) -> None:
        """Show the picture, for where no kernel answers, and the live view, which hides it."""
        from IPython.display import display

        self._still.show()
        data, metadata = super()._repr_mimebundle_() or ({}, {})
        data["text/plain"] = f"BlockPicker of {len(self._layers)} layers"  # true of every choice
        show: Any = display
        show(data, metadata=metadata, raw=True)

    def _words(self) -> str:
        return f"removes {format_layers(self.layers)} of {len(self._layers)} layers"

    def _show_look(self, state: dict[str, Any]) -> None:
        self._look = state

    def _show_kept(self) -> None:
        self._kept = [self._with_losses(row) for row in self._kept]

    def _with_losses(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"layers": row["layers"], **self._looking.losses(tuple(row["layers"]))}

    def _facts(self, layers: Layers) -> dict[str, Any]:
        """Return what is known of layers: their names as text, the rest as numbers."""
        is_block = self._is_block(layers)
        facts: dict[str, Any] = {"start": layers[0] if is_block else None, "size": len(layers)}
        facts["removed"] = format_layers(layers)
        for metric in self._measured:
            facts |= metric.block(layers) if is_block or metric.single else {}
        costs = {"parameters_saved": self._parameters, "flops_saved": self._flops}
        for (name, each), whole in zip(costs.items(), self._totals, strict=True):
            if each:
                facts[name] = sum(each[self._layers.index(layer)] for layer in layers) / whole
        return facts | self._looking.losses(layers)


def _writes_to(run: Any) -> Callable[[BlockPicker], Any] | None:
    return None if run is None else lambda picker: picker.save(run)
