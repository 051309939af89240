"""A file of rows written as it goes: killed at any moment, it holds every row finished before."""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.runs.files import write_bytes_atomic, write_text_atomic

_OURS = b'{"journal": {'


class Journal:
    """JSON lines after a header that says what the rows were made from; each line carries its checksum.

    Args:
        path: the file; made when missing.
        header: plain values. A file with another header is other work and is never added to.
        overwrite: begin the file again when its header is another one, or is damaged.

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
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"{self.path} is a folder, a pipe or a device; give the path of a file")
        if self.path.exists() and self.path.stat().st_size > 0:
            differences = self._differences()
            if not differences:
                return
            if not overwrite:
                other, way_out = ", another ".join(differences), "give another file, or overwrite=True"
                raise ValueError(f"{self.path} was written with another {other}; {way_out}")
        write_text_atomic(self.path, _line({"journal": self.header}))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows written so far.

        A last line that a kill cut short is removed from the file; so is, with a warning, a line that was
        damaged later, so that its rows are made again.
        """
        header, *lines = self.path.read_bytes().split(b"\n")
        whole, torn = lines[:-1], lines[-1] if lines else b""
        rows = [_checked(line) for line in whole]
        kept = [line for line, row in zip(whole, rows, strict=True) if row is not None]
        if len(kept) < len(whole):
            lost = len(whole) - len(kept)
            warnings.warn(f"{lost} damaged lines of {self.path} are dropped, and made again", stacklevel=2)
        if torn or len(kept) < len(whole):
            write_bytes_atomic(self.path, b"\n".join([header, *kept, b""]))
        return [row for row in rows if row is not None]

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows, and return when they are on the disk.

        Raises:
            ValueError: when other work has begun the file again meanwhile.
        """
        if self._differences():
            raise ValueError(f"{self.path} was begun again by other work; give each work its own file")
        data = "".join(map(_line, rows)).encode("utf-8", "replace")
        with self.path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _differences(self) -> list[str]:
        """Return in which parts the header of the file differs from ours."""
        with self.path.open("rb") as file:
            first = file.readline()
        if not first.startswith(_OURS):
            raise ValueError(f"{self.path} is not a journal of this work; give another file")
        found = (_checked(first) or {}).get("journal")
        if not isinstance(found, dict):
            return ["header (its first line is damaged)"]
        return sorted(key for key in {*found, *self.header} if found.get(key) != self.header.get(key))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row | {"sum": _sum(row)}, ensure_ascii=False) + "\n"


def _sum(row: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))


def _checked(line: bytes) -> dict[str, Any] | None:
    """Return the row of a line, None when it is not what was written."""
    try:
        row = dict(json.loads(line))
        return row if row.pop("sum") == _sum(row) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
