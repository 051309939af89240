"""What is printed while notebooks run: which one, which cell, since when, and how long it may take."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

#: seconds; of what takes less nothing is said before
LONG = 10
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_IN_ALL = re.compile(r"\*About (\d+) s in all on two CPU cores")
_ABOUT = re.compile(r"\*About (\d+) s on two CPU cores")


@dataclass
class Times:
    """How long a notebook may take: what its last execution in this run took, else what its text says.

    Attributes:
        seconds: in all; None where nothing is known.
        source: what they were measured on.
        cells: seconds of each code cell, by its source.
    """

    seconds: float | None = None
    source: str = "for the demo on two CPU cores"
    cells: dict[str, float] = field(default_factory=dict)

    def of_cell(self, source: str) -> str:
        """Return what to say before a cell runs, "" for one that takes no ten seconds or is not known."""
        seconds = self.cells.get(source, 0)
        return f"about {duration(seconds)} {self.source}" if seconds >= LONG else ""

    def __str__(self) -> str:
        if self.seconds is None:
            return "as long as the settings take"
        return f"about {duration(self.seconds)} {self.source}"


def times_of(notebook: NotebookNode, executed: Path) -> Times:
    """Return how long a notebook may take.

    Args:
        notebook: the one to run.
        executed: where its executed copy is, if there is one.
    """
    if executed.is_file():
        copy = nbformat.read(executed, as_version=4)
        if whole := copy.metadata.get("papermill", {}).get("duration"):
            taken = {c.source: c.metadata.papermill.get("duration") or 0.0 for c in copy.cells if _timed(c)}
            return Times(whole, "as last time", taken)
    said, about, cells = None, 0.0, {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found, in_all = _ABOUT.search(cell.source), _IN_ALL.search(cell.source)
            said, about = float(in_all[1]) if in_all else said, float(found[1]) if found else 0.0
        else:
            cells[cell.source], about = about, 0.0
    return Times(said, cells=cells)


def altogether(times: Iterable[Times]) -> str:
    """Return how long notebooks may take together."""
    times = [*times]
    known = [one.seconds for one in times if one.seconds is not None]
    sources = dict.fromkeys(one.source for one in times)
    return str(Times(sum(known), " and ".join(sources)) if len(known) == len(times) else Times())


def duration(seconds: float) -> str:
    """Return a time in words.

    >>> duration(38.2), duration(150), duration(7300)
    ('38 s', '2.5 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def told(label: str, cells: int, times: Times) -> Iterator[Callable[..., None]]:
    """Give the function that nbclient is to call as each cell starts.

    On a terminal one line follows the cell and the time; elsewhere a line is printed for each section.

    Args:
        label: which notebook; "" prints nothing.
        cells: how many it has.
        times: how long they may take.
    """
    shown, done = _Shown(label, cells, times), threading.Event()

    def tick() -> None:
        while not done.wait(1):
            shown.tell()

    if label and sys.stdout.isatty():
        threading.Thread(target=tick, daemon=True).start()
    try:
        yield shown.cell_starts
    finally:
        done.set()


def say_line(text: str) -> None:
    """Print a line, in place of the one that follows the cells on a terminal."""
    before, after = ("\r", "\x1b[K") if sys.stdout.isatty() else ("", "")
    print(f"{before}{text}{after}", flush=True)


class _Shown:
    def __init__(self, label: str, cells: int, times: Times) -> None:
        self.label, self.cells, self.times = label, cells, times
        self.began, self.heading, self.line, self.last = time.perf_counter(), "", "", ""

    def cell_starts(self, *, cell: NotebookNode, cell_index: int, **_: Any) -> None:
        if cell.cell_type == "markdown":
            headings = _HEADING.findall(cell.source)
            self.heading = headings[-1].strip() if headings else self.heading
        elif self.label:
            about = self.times.of_cell(cell.source)
            where = f"{self.label}  cell {cell_index + 1} of {self.cells}  {self.heading}"
            self.line = f"{where}, {about}" if about else where
            self.tell()

    def tell(self) -> None:
        seconds = f"{time.perf_counter() - self.began:4.0f} s"
        if sys.stdout.isatty():
            print(f"\r{self.line}  {seconds}\x1b[K", end="", flush=True)
        elif self.heading != self.last or ", about " in self.line:
            self.last = self.heading
            print(f"{self.line}  {seconds}", flush=True)


def _timed(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and "papermill" in cell.metadata
