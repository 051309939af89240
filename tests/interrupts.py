"""Ctrl-C at a chosen moment: a tracer that raises KeyboardInterrupt at the n-th line that runs."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import cache
from linecache import getline
from types import FrameType
from typing import Any

#: whose lines count; an interrupt falls between two of them. Not those of contextlib: one between the end
#: of a body and the rest of its context manager is out of a library's reach. Nor is a line that begins with
#: ``with`` a moment: the tracer sees it between a body's end and the call of ``__exit__``, where Python looks
#: for no signal
WHOSE = ("/workbench/", "/peft/")


@cache
def _counts(file: str) -> bool:
    return any(part in file for part in WHOSE)


class Interrupt:
    """Count the lines of the package and of peft, and interrupt at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.lines, self.where = at, 0, ""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if _counts(frame.f_code.co_filename) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                if getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
                    self.at += 1
                    return self._line
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._line


def traced(work: Callable[[], None], tracer: Interrupt) -> Interrupt:
    """Run the work under a tracer; an interrupt ends it."""
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return tracer


def moments(work: Callable[[], None], many: int, end: int = 1000, seed: int = 0) -> list[int]:
    """Return so many moments of a work, half of them in its last lines, where things are put back."""
    total = traced(work, Interrupt()).lines
    draw = random.Random(seed)
    return draw.sample(range(total - end, total), many // 2) + draw.sample(range(1, total - end), many // 2)
