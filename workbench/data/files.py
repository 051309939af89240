"""Rows of a local file, whatever its form; what cannot be read is named by file and line (no torch)."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench.checks import first_line, told

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".txt", ".txt.gz", ".parquet")

#: bytes that are unpacked at once; those that any file may hold; and how many times its own size, above that
_PIECE, _PLENTY, _MOST_TIMES = 2**24, 2**28, 100


def read_rows(path: str | Path) -> list[Any]:
    """Read every row of a local file: dicts, or texts from a ``.txt`` (one a line).

    JSON is a list of rows, an object whose only list they are, or rows as lines. Text is UTF-8, or UTF-16
    that says so in its first bytes; a table of ``.csv`` has the names of its columns in the first line.

    Raises:
        ValueError: in one line, with the file and where there is one the line: for another ending, a
            damaged file, bytes that are no text, lines that are no JSON, rows of a table that do not fit its
            columns.
    """
    path = at_home(path)
    if not path.name.lower().endswith(ENDINGS):
        raise ValueError(f"a data file must end in {', '.join(ENDINGS)}, got {path}")
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    readers: dict[str, Callable[[str, Path], list[Any]]] = {"txt": _lines, "csv": _table}
    return readers.get(kind, _json)(_text(path), path)


def at_home(path: str | Path) -> Path:
    """Return a path, ``~`` in front being the home folder; a folder that is called so where there is none."""
    return Path(os.path.expanduser(path))


def _parquet(path: Path) -> list[Any]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    rows, size = list[Any](), 0
    with (
        told(f"{path} is not a whole parquet file", pyarrow.ArrowException, OSError, UnicodeError),
        ParquetFile(path) as file,
    ):
        for batch in file.iter_batches():
            # a dictionary of one long text is small; its rows are not
            size += sum(column.nbytes for column in map(_spelt_out, batch.columns))
            _check_size(path, size)
            rows += batch.to_pylist()
    return rows


def _spelt_out(column: Any) -> Any:
    return column.dictionary_decode() if hasattr(column, "dictionary_decode") else column


def _text(path: Path) -> str:
    with told(f"{path} cannot be read", OSError):
        data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        parts, size = list[bytes](), 0
        with (
            told(f"{path} is not a whole gzip file", OSError, EOFError, zlib.error),
            gzip.GzipFile(fileobj=io.BytesIO(data)) as file,
        ):
            while part := file.read(_PIECE):
                size += len(part)
                _check_size(path, size)
                parts.append(part)
        data = b"".join(parts)
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        kind = f"{encoding.upper().removesuffix('-SIG')} text (byte {byte:#04x}: {error.reason})"
        raise ValueError(f"line {line} of {path} is not {kind}; save the file as UTF-8") from error


def _check_size(path: Path, size: int) -> None:
    """Refuse a small file that unpacks to more than any text does: it would fill the memory."""
    if size > max(_PLENTY, _MOST_TIMES * path.stat().st_size):
        raise ValueError(f"{path} unpacks to more than {_MOST_TIMES} times its size; give it unpacked")


def _lines(text: str, path: Path) -> list[str]:
    # not splitlines(): a text may hold U+2028, which that would break the line at
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]


def _table(text: str, path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows, names = [], list(reader.fieldnames or ())
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path} must name each column once, got {twice!r} again")
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"line {reader.line_num} of {path} does not fit its columns {names}")
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} of {path} is not CSV: {error}") from error
    return rows


def _json(text: str, path: Path) -> list[Any]:
    """Read one JSON value, or one a line where the first line is one by itself."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    first = lines[0][1].strip() if lines else ""
    opens = first.startswith("[") or first == "{" or ".jsonl" not in path.name.lower()
    if (len(lines) == 1 and opens) or (opens and not _is_json(first)):
        return _rows_of(_parsed(text, path, 1), path)
    return [_parsed(line, path, number) for number, line in lines]


def _is_json(text: str) -> bool:
    with suppress(ValueError, RecursionError):
        json.loads(text)
        return True
    return False


def _rows_of(value: Any, path: Path) -> list[Any]:
    lists = [one for one in value.values() if isinstance(one, list)] if isinstance(value, dict) else [value]
    if len(lists) == 1 and isinstance(lists[0], list):
        return [*lists[0]]
    what = f"an object with {', '.join(map(str, value))}" if isinstance(value, dict) else repr(value)[:40]
    raise ValueError(f"{path} must hold a list of rows, or an object with one such list; it holds {what}")


def _parsed(text: str, path: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = number + getattr(error, "lineno", 1) - 1
        raise ValueError(f"line {line} of {path} is not JSON: {first_line(error)}") from error
