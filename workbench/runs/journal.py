"""A file of rows written as it goes: killed at any moment, it holds every row finished before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.runs.files import write_text_atomic


class Journal:
    """JSON lines after a header that says what the rows were made from.

    Args:
        path: the file; made when missing.
        header: plain values. A file with another header is other work and is never added to.
        overwrite: begin the file again when its header is another one.

    Raises:
        ValueError: for a file with another header (names what differs), or one that is no journal.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Journal(f"{folder}/rows.jsonl", {"seed": 0}).append([{"row": 1}])
    ...     Journal(f"{folder}/rows.jsonl", {"seed": 0}).rows()
    [{'row': 1}]
    """

    def __init__(self, path: str | Path, header: dict[str, Any], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.header = json.loads(json.dumps(header))
        begun = self.path.exists() and self.path.stat().st_size > 0
        if begun and not self._differences():
            return
        if begun and not overwrite:
            raise ValueError(
                f"{self.path} was written with another {', another '.join(self._differences())}; "
                "give another file, or overwrite=True to begin it again"
            )
        write_text_atomic(self.path, json.dumps({"journal": self.header}, ensure_ascii=False) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows written so far; a last line that a kill cut short is removed from the file."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        return [self._parsed(line, number) for number, line in enumerate(data[:whole].split(b"\n")[1:-1], 2)]

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows, and return when they are on the disk.

        Raises:
            ValueError: when other work has begun the file again meanwhile.
        """
        if self._differences():
            raise ValueError(
                f"{self.path} was begun again by other work meanwhile; give each work its own file"
            )
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
        with self.path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _differences(self) -> list[str]:
        """Return in which parts the header of the file differs from ours."""
        with self.path.open("rb") as file:
            first = file.readline()
        try:
            found = dict(json.loads(first)["journal"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not a journal of this work; give another file") from error
        return sorted(key for key in {*found, *self.header} if found.get(key) != self.header.get(key))

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"line {number} of {self.path} is damaged; remove the file to begin again"
            ) from error
