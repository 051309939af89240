"""What a GPU is given, by a thread of its own, while the process builds and reads what comes after."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache

import torch

#: seconds between two looks at what was done, while it is waited for, and while a GPU has too little to do
_LOOK, _SHORT_LOOK = 0.1, 0.001
#: works at most that are given and not done; a process with a GPU has something to do, and is not far ahead
_GIVEN = 2


class Launcher:
    """Does what it is given, in that order: in a thread inside ``meanwhile`` on a GPU, else at once.

    A queue of launches holds about one pass of a large model, so a GPU whose process does anything else for
    longer runs dry. On a CPU the passes themselves are what takes long, and a thread gains nothing.

    Attributes:
        stopped: whether what was given shall not be done any more; work looks at it between two passes.
    """

    def __init__(self, device: torch.device, busy: Callable[[], bool], shown: Callable[[], None]) -> None:
        """Take what says whether a pass is left to the device, and what is called while one is waited for."""
        self.device, self.busy, self.shown = device, busy, shown
        self.pool: ThreadPoolExecutor | None = None
        self.stream: torch.cuda.Stream | None = None
        self.given: deque[Future[None]] = deque()
        self.stopped = False

    def give(self, work: Callable[[], None]) -> None:
        """Let something be done after all that was given before, and wait where that is much.

        Raises:
            Exception: that of work given before, or of this work where it is done at once.
        """
        if self.pool is None:
            self.stopped = False
            work()
            return
        self._wait(_GIVEN - 1)
        self.given.append(self.pool.submit(self._do, work))

    def wait(self) -> None:
        """Wait until all is done.

        Raises:
            Exception: that of any work given before.
        """
        self._wait(0)

    def let_launch(self) -> None:
        """Wait while the device has nothing but what is being launched, if there is more to launch behind it.

        Two threads of Python take turns at each operation of a pass, some two thousand: beside one that only
        computes the other would launch a hundred times slower. Where nothing waits to be launched, what is
        built here is what a GPU will soon wait for.
        """
        while len(self.given) > 1 and not self.given[-2].done() and not self.busy():
            time.sleep(_SHORT_LOOK)

    def _wait(self, rest: int) -> None:
        while len(self.given) > rest:
            if wait([self.given[0]], timeout=_LOOK).done:
                self.given.popleft().result()
            self.shown()

    def _do(self, work: Callable[[], None]) -> None:
        if self.stopped:
            return
        try:
            with torch.no_grad(), torch.cuda.stream(self.stream):  # both belong to a thread
                work()
        except BaseException:
            self.stopped = True
            raise

    def _on_device(self) -> None:
        if self.stream is not None:
            torch.cuda.set_device(self.stream.device)  # or leaving the stream would wake the first GPU

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Use a thread on a GPU until leaving; with an error, what is not done by then is not done at all."""
        self.stopped = False
        if not worth_a_thread(self.device):
            yield
            return
        self.stream = stream_of(self.device)
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with ThreadPoolExecutor(1, "launching", initializer=self._on_device) as self.pool:
                try:
                    yield
                    self.wait()
                except BaseException:
                    self.stopped = True
                    raise
        finally:
            self.pool = None
            self.given.clear()
            self.shown()
            if self.stream is not None:
                torch.cuda.current_stream(self.device).wait_stream(self.stream)


@cache
def stream_of(device: torch.device) -> torch.cuda.Stream | None:
    """Return the stream of all passes on a GPU: the harness, which copies to and from it, waits for none."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def worth_a_thread(device: torch.device) -> bool:
    """Say whether a device computes while the process that gave it something does other things."""
    return device.type == "cuda"
