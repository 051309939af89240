"""Looks of the picker: one at a time in a thread, cancelled by the next, remembered while the model stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from workbench.checks import first_line
from workbench.distances.blocks import Layers, format_layers

Look = Callable[[Layers, Callable[[], bool]], "dict[str, Any] | None"]
#: what a look tells of the loss, as the kept table shows it
LOSSES = ("base_loss", "loss", "added_low", "added_high")


class Looks:
    """What was seen of sets of layers, and the look that is running."""

    def __init__(self, show: Callable[[dict[str, Any]], None], seen: Callable[[], None]) -> None:
        """Begin with nothing to look with; ``show`` gets each state, ``seen`` is called after each result."""
        self._show, self._seen = show, seen
        self._state: dict[str, Any] = {}
        self._look: Look | None = None
        self._of: Any = None
        self._found: dict[Layers, dict[str, Any]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._running: tuple[threading.Event, Future[Any], bool] | None = None
        self._writing = threading.RLock()

    @property
    def able(self) -> bool:
        """Whether there is something to look with."""
        return self._look is not None

    def use(self, look: Look) -> None:
        """Look with another function from now on; what was seen by the last one is forgotten."""
        self.cancel()
        self._look, self._of, self._found = look, None, {}
        self._put({})

    def losses(self, layers: Layers) -> dict[str, Any]:
        """Return the losses seen of a set of layers."""
        found = self._found.get(layers, {})
        return {name: found[name] for name in LOSSES if name in found}

    def start(self, *sets: Layers, stays: bool = False) -> Future[Any]:
        """Look at sets of layers in turn; returns a future of what was seen of the last one.

        Args:
            *sets: sets of layers.
            stays: whether the look goes on when another block is chosen.

        Raises:
            ValueError: when there is nothing to look with.
        """
        if self._look is None:
            raise ValueError("look needs something to look with; call look_with(looking(model, ...)) first")
        self.cancel()
        self._forget_another_model()
        if found := self._found.get(sets[-1]) if len(sets) == 1 else None:
            self._put(found)
            done: Future[Any] = Future()
            done.set_result(found)
            return done
        self._put({"state": "running", "removed": format_layers(sets[0])})
        if self._threads is None:
            self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="look")
        cancelled = threading.Event()
        future = self._threads.submit(self._run, sets, cancelled)
        self._running = (cancelled, future, stays)
        return future

    def cancel(self, *, by_choice: bool = False) -> None:
        """Cancel the running look; one that stays is not cancelled by a choice."""
        running = self._running
        if running is None or (by_choice and running[2] and not running[1].done()):
            return
        self._running = None
        if running[1].done():
            return
        with self._writing:
            running[0].set()
            self._put({**self._state, "state": "cancelled"})
        running[1].cancel()

    def close(self) -> None:
        """Cancel and let the thread end."""
        self.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    def _forget_another_model(self) -> None:
        """Forget what was seen when the weights have changed since, as in training."""
        of = getattr(self._look, "identity", lambda: None)()
        if of != self._of:
            self._of, self._found = of, {}
            self._seen()

    def _run(self, sets: Sequence[Layers], cancelled: threading.Event) -> Any:
        found = None
        for number, layers in enumerate(sets, start=1):
            if layers not in self._found and len(sets) > 1:
                more = {"number": number, "of": len(sets)}
                self._tell(cancelled, {"state": "running", "removed": format_layers(layers), **more})
            found = self._found.get(layers) or self._one(layers, cancelled)
            if found is None:
                return None
        self._tell(cancelled, found)
        return found

    def _one(self, layers: Layers, cancelled: threading.Event) -> dict[str, Any] | None:
        assert self._look is not None
        began, removed = time.perf_counter(), format_layers(layers)
        try:
            found = self._look(layers, cancelled.is_set)
        except Exception as error:
            self._tell(cancelled, {"state": "failed", "removed": removed, "error": first_line(error)})
            raise
        if found is None or cancelled.is_set():
            return None
        found = {**found, "state": "done", "removed": removed, "seconds": time.perf_counter() - began}
        self._found[layers] = found
        self._seen()
        return found

    def _tell(self, cancelled: threading.Event, state: dict[str, Any] | None) -> None:
        """Show a look's state, unless another choice has taken its place."""
        with self._writing:
            if not cancelled.is_set() and state is not None:
                self._put(state)

    def _put(self, state: dict[str, Any]) -> None:
        self._state = state
        self._show(state)
