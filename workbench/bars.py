"""Progress bars that need no widget: in a notebook plain HTML that is displayed again, in a terminal text."""

from __future__ import annotations

import html
import io
import time
from collections.abc import Callable
from typing import Any

from tqdm.std import tqdm as _TextBar

#: class of a bar's HTML, by which executed copies are freed of them
BAR = "workbench-bar"
#: seconds; a bar that was done sooner leaves nothing behind
BRIEF = 5


class Spot:
    """A place below the cell that runs, whose content is replaced as often as wanted."""

    def __init__(self, name: str | None = None) -> None:
        self._name: str | bool = name or True
        self._handle: Any = None

    def show(self, bundle: dict[str, Any]) -> None:
        """Show it by the kinds of its content, in place of what is there."""
        from IPython.display import display

        show: Any = display
        if self._handle is None:
            self._handle = show(bundle, raw=True, display_id=self._name)
        else:
            self._handle.update(bundle, raw=True)


#: cell and kind -> where it is told, the names, their amounts
_TOLD: dict[tuple[int, str], tuple[Spot, list[str], list[float]]] = {}


def say_together(name: str, kind: str, line: Callable[[list[str], float], str], amount: float = 0.0) -> None:
    """Print a line about a name; those of one kind are one line in each cell of a notebook.

    Args:
        name: of a result.
        kind: of what is said.
        line: makes the line of names and of the sum of their amounts.
        amount: such as seconds.
    """
    if not _in_notebook():
        print(line([name], amount), flush=True)
        return
    from IPython.core.getipython import get_ipython

    cell: Any = get_ipython()
    spot, names, amounts = _TOLD.setdefault((cell.execution_count, kind), (Spot(), [], []))
    names.append(name)
    amounts.append(amount)
    spot.show({"text/plain": line(names, sum(amounts))})


class tqdm(_TextBar):  # type: ignore[misc]
    """The bar of the library of that name. A saved notebook keeps what it said last, and nothing dead."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.spot = Spot()
        self.last_print_t = 0.0
        self.in_notebook = _in_notebook()
        if self.in_notebook:
            options = {"mininterval": 0.5, **options, "file": io.StringIO()}
        super().__init__(*arguments, **options)

    def say(self, text: str) -> None:
        """Show a text behind the bar while a step takes long, no oftener than the bar itself."""
        if not self.disable and (now := time.time()) - self.last_print_t >= self.mininterval:
            self.set_postfix_str(text)
            self.last_print_t = now

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show how far it is; an empty message takes the bar away."""
        if not self.in_notebook:
            return super().display(msg, pos)
        self._show("" if msg == "" else bar_html(self.format_dict))
        return True

    def close(self) -> None:
        """End the bar; one that took its time and may stay leaves a line."""
        open_before, told = not self.disable, self.format_dict
        super().close()
        if self.in_notebook and open_before:
            stays = self.leave and told["elapsed"] >= BRIEF
            self._show(bar_html(told, done=True) if stays else "")

    def _show(self, text: str) -> None:
        self.spot.show({"text/html": f'<div class="{BAR}">{text}</div>'})


def bar_html(told: dict[str, Any], *, done: bool = False) -> str:
    """Return a bar as HTML: what, how far, since when, and how long it will still take.

    >>> bar_html({"prefix": "damage", "n": 5, "total": 20, "elapsed": 3.0, "unit": "text"}).partition("> ")[2]
    'damage: 5 of 20 texts, 0:03, about 0:09 left'
    >>> bar_html({"prefix": "damage", "n": 20, "total": 20, "elapsed": 61, "unit": "text"}, done=True)
    'damage: 20 of 20 texts, 1:01'
    """
    n, total, elapsed = told["n"], told.get("total"), told["elapsed"]
    prefix = (told.get("prefix") or "").removesuffix(": ")
    unit = "" if told.get("unit", "it") == "it" else f" {told['unit']}s"
    words = [
        f"{prefix + ': ' if prefix else ''}{n:,}{f' of {total:,}' if total else ''}{unit}",
        *([_clock(elapsed)] if n or done else []),
    ]
    if total and total <= 50 * n < 50 * total:  # what begins takes its time, and foretells nothing
        words.append(f"about {_clock(elapsed * (total - n) / n)} left")
    words += [told["postfix"]] if told.get("postfix") else []
    said = html.escape(", ".join(words), quote=False)
    share = f'value="{n}" max="{total}"' if total and n else ""  # without a value it moves by itself
    return said if done else f'<progress {share} style="width:12em"></progress> {said}'


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _in_notebook() -> bool:
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
