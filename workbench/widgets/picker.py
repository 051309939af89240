"""The block picker: a heatmap of distances to choose from, by click, key, field or call. No torch in here.

``BlockPicker`` is a small state object: ``start``, ``size`` and ``layers`` are traits, the page mirrors
them, and every click has a method that does the same. The page is ``static/block_picker.js``; it loads
nothing from a network.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import anywidget
import pandas as pd
import traitlets as tr

from workbench.arguments import check_frame
from workbench.checks import checked
from workbench.distances.blocks import (
    checked_blocks,
    format_layers,
    layers_are_known,
    layers_in,
    layers_of,
    least,
)

Look = Callable[[tuple[int, ...], Callable[[], bool]], "dict[str, Any] | None"]

_STATIC = Path(__file__).parent / "static"
#: seconds; a look that took less is repeated at every choice unless ``auto`` says otherwise
FAST = 2.0


class BlockError(tr.TraitError, ValueError):
    """A block that the model does not have."""


class BlockPicker(anywidget.AnyWidget):
    """Choose a block of layers on the heatmap of its distances.

    Attributes:
        start: trait, first removed layer (original number).
        size: trait, number of layers removed.
        layers: trait, the removed layers; observe this one to hear of a choice once.
        auto_look: trait, whether every choice starts a look.
    """

    _esm = _STATIC / "block_picker.js"
    _css = _STATIC / "block_picker.css"

    start = tr.Int().tag(sync=True)
    size = tr.Int().tag(sync=True)
    layers = tr.Tuple()
    auto_look = tr.Bool(False).tag(sync=True)

    _title = tr.Unicode().tag(sync=True)
    _layers = tr.List(tr.Int()).tag(sync=True)
    _sizes = tr.List(tr.Int()).tag(sync=True)
    # float32 distance, ci_low, ci_high of every block, by size, then start: 39 kB at 80 layers, 190 kB as
    # JSON
    _cells = tr.Bytes().tag(sync=True)
    _parameters: Any = tr.List().tag(sync=True)
    _flops: Any = tr.List().tag(sync=True)
    _totals = tr.List(default_value=[0, 0]).tag(sync=True)
    _kept: Any = tr.List().tag(sync=True)
    _look = tr.Dict().tag(sync=True)
    _can_look = tr.Bool(False).tag(sync=True)

    # the base class closes a widget whose constructor failed
    _running: tuple[threading.Event, Future[Any]] | None = None
    _threads: ThreadPoolExecutor | None = None

    def __init__(
        self,
        distances: pd.DataFrame,
        *,
        savings: pd.DataFrame | None = None,
        start: int | None = None,
        size: int | None = None,
        title: str = "Choose a block of layers to remove",
        **widget_options: Any,
    ) -> None:
        """Make a picker.

        Args:
            distances: frame of ``angular_distances``: ``start``, ``size``, ``distance``, and ``ci_low``,
                ``ci_high`` where there. The block of all layers is left out: something has to stay.
            savings: frame of ``block_savings`` of the same model, to show what a block saves.
            start: first choice; None means the nearest block of its size.
            size: of the first choice; None means 2, or the least size that the frame holds.
            title: shown above, and what a screen reader calls the picker.
            **widget_options: as every ipywidget takes them, such as ``layout``.

        Raises:
            ValueError: for missing columns, repeated blocks, a frame that leaves open which layers the model
                has, savings of another model, or a first choice that the frame does not hold.
        """
        for name, given in (("distances", distances), ("savings", savings)):
            if isinstance(given, pd.DataFrame):
                check_frame(name, given)
        frame = checked_blocks(distances, "distance", "distances")
        layers = _layers_of_model(frame)
        self._frame = checked(frame[frame["size"] < len(layers)], [], "distances below the size of the model")
        self._blocks = set(zip(self._frame["start"].tolist(), self._frame["size"].tolist(), strict=True))
        saved = {} if savings is None else _layer_savings(savings, layers)
        self._looked: dict[tuple[int, int], dict[str, Any]] = {}
        self._look_at: Look | None = None
        self._auto_when_fast = False
        self._writing = threading.Lock()
        sizes = sorted({size for _, size in self._blocks})
        size = size if size is not None else (2 if 2 in sizes else sizes[0])
        start = start if start is not None else self._nearest(size)
        self._check(start, size)
        super().__init__(
            start=start,
            size=size,
            layers=layers_of(start, size, layers=layers),
            _title=title,
            _layers=layers,
            _sizes=sizes,
            _cells=_packed(self._frame, layers, sizes),
            **saved,
            **widget_options,
        )
        self.on_msg(self._on_message)

    def choose(self, start: int, size: int) -> tuple[int, ...]:
        """Choose a block, as a click on its cell does.

        Returns:
            The layers that it removes.

        Raises:
            ValueError: when the frame does not hold the block.
        """
        self._check(start, size)
        with self.hold_trait_notifications():
            self.start, self.size = int(start), int(size)
        return self.layers

    def choose_best(self, size: int) -> tuple[int, ...]:
        """Choose the nearest block of a size."""
        return self.choose(self._nearest(size), size)

    def keep(self) -> pd.DataFrame:
        """Keep the present choice beside the others, to compare; returns ``kept``."""
        with self._writing:
            if (self.start, self.size) not in [(row["start"], row["size"]) for row in self._kept]:
                self._kept = [*self._kept, self._with_losses({"start": self.start, "size": self.size})]
        return self.kept

    def drop(self, start: int, size: int) -> pd.DataFrame:
        """Take a block out of those kept; returns ``kept``."""
        with self._writing:
            self._kept = [row for row in self._kept if (row["start"], row["size"]) != (start, size)]
        return self.kept

    @property
    def kept(self) -> pd.DataFrame:
        """Kept choices in order: block, layers, distance, interval, shares saved, losses seen."""
        return pd.DataFrame(self._kept_facts())

    def selection(self) -> dict[str, Any]:
        """Return the choice and the kept ones as dicts and lists, as ``save`` writes it."""
        chosen = {"layers": list(self.layers), "n_layers": len(self._layers)}
        return {**chosen, **self._facts(self.start, self.size), "kept": self._kept_facts()}

    def save(self, run: Any) -> Path:
        """Write ``selection.json`` to a run, from where the next notebooks read it."""
        return Path(run.write_json("selection.json", self.selection(), distances=self._frame))

    def look_with(self, look: Look, *, auto: bool | None = None) -> BlockPicker:
        """Give the picker what it computes about a block before that is cut.

        Args:
            look: called in a thread as ``look(layers, cancelled)``. It returns a dict with ``base_loss``,
                ``loss`` (nats per token), ``prompt``, ``base_text``, ``text``, or None when ``cancelled()``
                turned true, which it should ask for between batches. ``workbench.looking`` makes one.
            auto: look at every choice; None starts doing so once a look took less than 2 s.

        Returns:
            The picker.
        """
        self._look_at, self._can_look = look, True
        self._auto_when_fast, self.auto_look = auto is None, bool(auto)
        return self

    def look(self) -> Future[Any]:
        """Look at the present choice in a thread and show what came out; cancels a look at another block.

        Returns:
            A future: ``.result()`` waits for the dict that ``look`` made; it raises what the look raised, and
            ``CancelledError`` when it was cancelled before it began; None when cancelled after.

        Raises:
            ValueError: when ``look_with`` was not called.
        """
        if self._look_at is None:
            raise ValueError("look needs something to look with; call look_with(looking(model, ...)) first")
        self._cancel()
        block, cancelled = (self.start, self.size), threading.Event()
        if found := self._looked.get(block):
            self._look = found
            done: Future[Any] = Future()
            done.set_result(found)
            return done
        self._look = {"state": "running", "removed": format_layers(self.layers)}
        if self._threads is None:
            self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="look")
        future = self._threads.submit(self._look_in_thread, block, self.layers, cancelled)
        self._running = (cancelled, future)
        return future

    def close(self) -> None:
        """Cancel a running look and take the widget off the page."""
        self._cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        super().close()

    @tr.validate("start", "size")
    def _validate_block(self, proposal: Any) -> int:
        block = {"start": self.start, "size": self.size, proposal["trait"].name: proposal["value"]}
        self._check(block["start"], block["size"])
        return int(proposal["value"])

    @tr.observe("start", "size")
    def _follow(self, _change: Any) -> None:
        layers = layers_of(self.start, self.size, layers=self._layers)
        if layers != self.layers:
            self._cancel()
            self.layers = layers
            if self.auto_look and self._look_at is not None:
                self.look()

    def _on_message(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        action, start, size = (cast(Any, content.get(name)) for name in ("do", "start", "size"))
        if action == "drop":
            self.drop(start, size)
        elif action in ("keep", "look"):
            # the page's own change of start and size may arrive after this message
            self.choose(start, size)
            self.keep() if action == "keep" else self.look()

    def _look_in_thread(
        self, block: tuple[int, int], layers: tuple[int, ...], cancelled: threading.Event
    ) -> Any:
        assert self._look_at is not None
        began, removed = time.perf_counter(), format_layers(layers)
        try:
            found = self._look_at(layers, cancelled.is_set)
        except Exception as error:
            self._show(cancelled, {"state": "failed", "removed": removed, "error": f"{error}"})
            raise
        if found is None or cancelled.is_set():
            return None
        seconds = time.perf_counter() - began
        found = {**found, "state": "done", "removed": removed, "seconds": seconds}
        self._looked[block] = found
        self._show(cancelled, found)
        with self._writing:
            self._kept = [self._with_losses(row) for row in self._kept]
        if self._auto_when_fast and seconds < FAST:
            self.auto_look = True
        return found

    def _show(self, cancelled: threading.Event, state: dict[str, Any]) -> None:
        """Show a look's state, unless another choice has taken its place."""
        with self._writing:
            if not cancelled.is_set():
                self._look = state

    def _cancel(self) -> None:
        running, self._running = self._running, None
        if running is None or running[1].done():
            return
        cancelled, future = running
        with self._writing:
            cancelled.set()
            self._look = {**self._look, "state": "cancelled"}
        future.cancel()

    def _check(self, start: Any, size: Any) -> None:
        if (start, size) not in self._blocks:
            allowed = f"size must be one of {format_layers(n for _, n in self._blocks)}"
            if starts := [s for s, n in self._blocks if n == size]:
                allowed = f"start must be one of {format_layers(starts)} for size {size}"
            got = f"got start {start!r}, size {size!r}"
            raise BlockError(f"{allowed}, {got}; choose(start, size) sets both at once")

    def _nearest(self, size: int) -> int:
        rows = self._frame[self._frame["size"] == size]
        if rows.empty:
            self._check(None, size)
        return int(least(rows, "distance")["start"].item())

    def _with_losses(self, row: dict[str, Any]) -> dict[str, Any]:
        found = self._looked.get((row["start"], row["size"]), {})
        return {**row, **{name: found[name] for name in ("base_loss", "loss") if name in found}}

    def _kept_facts(self) -> list[dict[str, Any]]:
        return [self._facts(row["start"], row["size"]) for row in self._kept]

    def _facts(self, start: int, size: int) -> dict[str, Any]:
        """Return what is known of a block: its layers as text, the rest as numbers."""
        row = self._frame[(self._frame["start"] == start) & (self._frame["size"] == size)].iloc[0]
        numbers = row.reindex(["distance", "ci_low", "ci_high"]).astype(float).dropna()
        facts = {"start": start, "size": size, "removed": row["removed"], **numbers}
        at = self._layers.index(start)
        if self._parameters:
            facts["parameters_saved"] = sum(self._parameters[at : at + size]) / self._totals[0]
            facts["flops_saved"] = sum(self._flops[at : at + size]) / self._totals[1]
        return self._with_losses(facts)


def _layers_of_model(frame: pd.DataFrame) -> list[int]:
    """Return the model's layers; where they can only be guessed from gaps between blocks, refuse."""
    layers, starts = layers_in(frame), sorted(set(frame["start"]))
    told = layers_are_known(frame) or set(starts) <= set(frame.loc[frame["size"] == 1, "start"])
    if not told and starts != list(range(starts[0], starts[-1] + 1)):
        raise ValueError(
            "distances must tell which layers the model has, these have gaps between their blocks: give the "
            "frame as angular_distances returned it, or keep its blocks of size 1"
        )
    return layers


def _packed(frame: pd.DataFrame, layers: list[int], sizes: list[int]) -> bytes:
    """Return distance and interval of every block as float32, by size, then by first layer."""
    blocks = [(size, start) for size in sizes for start in layers[: len(layers) - size + 1]]
    index = pd.MultiIndex.from_tuples(blocks, names=["size", "start"])
    columns = ["distance", "ci_low", "ci_high"]
    values = frame.set_index(["size", "start"]).reindex(index=index, columns=columns)
    return bytes(values.to_numpy(dtype="<f4").tobytes(order="F"))


def _layer_savings(savings: pd.DataFrame, layers: list[int]) -> dict[str, Any]:
    """Return parameters and FLOPs of each layer and of the whole; a block's are the sum over its layers."""
    columns = ["start", "size", "parameters", "parameters_left", "flops", "flops_left"]
    single = checked(savings, columns, "savings").query("size == 1").sort_values("start")
    if list(single["start"]) not in (layers, list(range(len(layers)))):
        needed = f"savings must hold the {len(layers)} blocks of size 1 of the same model"
        raise ValueError(f"{needed}, got {len(single)}; call block_savings(model) without sizes")
    whole = [int(single[name].iloc[0] + single[f"{name}_left"].iloc[0]) for name in ("parameters", "flops")]
    counts = single[["parameters", "flops"]].astype(int)
    return {"_totals": whole, **{f"_{name}": counts[name].tolist() for name in counts}}
