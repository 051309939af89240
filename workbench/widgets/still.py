"""A widget's picture beside its live view, for where no kernel answers.

That is a notebook opened again, its page, GitHub, and a front end that knows no widgets.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from html import escape
from typing import Any

from workbench.bars import Spot

#: seconds after the last change until the picture is drawn again: no click waits for it
SETTLED = 1.5
_WORDS = "A picture of the picker as it was shown last. To click in it, run its cell in a notebook."


class Still:
    """A picture that is displayed once with the live view, hidden by it, and kept up to date."""

    def __init__(
        self, name: str, draw: Callable[[], str], words: Callable[[], str], settled: Callable[[], Any]
    ) -> None:
        """Begin without a display.

        Args:
            name: a class of the page that nothing else has; the live view hides what bears it.
            draw: returns the picture as SVG.
            words: say what the picture shows.
            settled: called once nothing has changed for a while.
        """
        self.name, self._draw, self._words, self._settled = name, draw, words, settled
        self._drawn: str | None = None
        self._spot = Spot(name)
        self._timer: threading.Timer | None = None

    def bundle(self) -> dict[str, str]:
        """Return the picture as it is now, as HTML, as SVG and in words."""
        self._drawn, words = self._draw(), self._words()
        return {
            "text/html": _html(self.name, self._drawn, words),
            "image/svg+xml": self._drawn,
            "text/plain": f"Picture of it: {words}",
        }

    def show(self) -> None:
        """Display it in the cell that runs."""
        self._spot = Spot(self.name)
        self._spot.show(self.bundle())

    def later(self) -> None:
        """Draw it again once nothing has changed for a while."""
        if self._drawn is None:
            return
        self.close()
        self._timer = threading.Timer(SETTLED, self.now)
        self._timer.daemon = True
        self._timer.start()

    def now(self) -> None:
        """Draw it again where it is displayed and shows something else."""
        self.close()
        self._settled()
        if self._drawn is not None and self._drawn != self._draw():
            self._spot.show(self.bundle())

    def close(self) -> None:
        """Draw it no more."""
        if self._timer is not None:
            self._timer.cancel()


def _html(name: str, svg: str, words: str) -> str:
    """Return the picture as an image, which stays where a page drops SVG and scripts that it does not trust.

    The style takes away what JupyterLab says in the place of a widget whose kernel is gone.
    """
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")
    dead = f".jp-OutputArea-child:has(.{name}) + .jp-OutputArea-child > .jp-OutputArea-output:not(:has(> *))"
    return (
        f"<style>{dead} {{ display: none; }}</style>"
        f'<figure class="{name}" style="margin:0"><img alt="{escape(words, quote=True)}" src="{source}" '
        f'style="max-width:100%"/><figcaption>{_WORDS}</figcaption></figure>'
    )
