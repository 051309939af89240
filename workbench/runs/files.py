"""Files that are whole or not there: atomic writes, and frames that read back exactly as written."""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import io
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from jinja2 import Environment, Template

from workbench.checks import NoRoom, told

_EXACT: dict[str, Any] = {"keep_default_na": False, "skip_blank_lines": False}
if tuple(int(part) for part in pd.__version__.split(".")[:2]) < (3, 1):
    _EXACT["float_precision"] = "round_trip"  # the default reader rounds the last digit of a float
_MISSING_MARKS = ("", "NA", "<missing>", "<no value>")


def write_bytes_atomic(path: str | Path, data: bytes) -> Path:
    """Write ``data`` to ``path``; a reader, or a kill at any moment, finds the old file or the new one whole.

    Returns:
        The path written. Its folder is made when missing.

    Raises:
        NoRoom: when the disk is full; ``path`` is as it was.
        ValueError: where nothing can be written.
    """
    path = Path(path)
    temporary = _temporary_sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoRoom(f"no room on the disk for {path}; make some, then the same call goes on") from error
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # none was made
            temporary.unlink()
    return path


def write_text_atomic(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8; see ``write_bytes_atomic``."""
    return write_bytes_atomic(path, text.encode("utf-8"))


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes the name ``path`` when the body ends without an error.

    A folder that was at ``path`` is replaced as a whole. After an error or a kill it is still the old one
    (a kill inside the replacement itself can leave none, never a mixture).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _temporary_sibling(path), _temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_room(path: str | Path, needed: int) -> None:
    """Refuse work whose result would not fit on the disk, before it begins.

    Args:
        path: where the result will lie; its folder need not be there yet.
        needed: bytes of the result.

    Raises:
        NoRoom: naming what is free, what is needed and where.
    """
    place = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if (free := shutil.disk_usage(place).free) < needed:
        unit, size = ("GiB", 2**30) if needed >= 2**27 else ("MiB", 2**20)
        sizes = f"{needed / size:,.2f} {unit} are needed at {path}, {free / size:,.2f} {unit} are free"
        raise NoRoom(f"{sizes}; make room, or give another place")


@contextmanager
def locked(path: str | Path, name: str = "") -> Iterator[None]:
    """Hold a file or folder alone: another process that wants it waits, and says so in one line.

    The lock is a hidden file beside it, gone when it is let go. Where nobody may write, nobody is waited for.

    Raises:
        ValueError: for a folder that is missing and cannot be made.
    """
    path = Path(path)
    with told(f"{path} cannot be written", OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        yield
        return
    lock = FileLock(path.with_name(f".{path.name}.lock"), is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{name or path}: another process is at it; waiting for it to finish", flush=True)
        lock.acquire()
    except OSError as error:
        raise ValueError(f"{lock.lock_file} cannot be locked: {error.strerror}") from error
    try:
        yield
    finally:
        if lock.lock_counter == 1 and os.name == "posix":  # elsewhere release removes it
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def template(path: Path) -> Template:
    """Return the jinja template of a file; what is put into it is escaped as HTML."""
    return Environment(autoescape=True).from_string(path.read_text(encoding="utf-8"))


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits; see ``content_of`` for folders."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def spreadsheet_text(value: Any) -> Any:
    """Return a cell for people: a text that a spreadsheet would run as a formula has an apostrophe before it.

    >>> [spreadsheet_text(value) for value in ("=1+1", " @x", "-5 apples", "plain", -5)]
    ["'=1+1", "' @x", "'-5 apples", 'plain', -5]
    """
    shown = value.lstrip().lstrip("\ufeff\u200b\u200c\u200d\u2060") if isinstance(value, str) else ""
    runs = shown.startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠"))
    return f"'{value}" if runs or (isinstance(value, str) and value[:1] in ("\t", "\r")) else value


def encode_frame(name: str, frame: pd.DataFrame) -> tuple[bytes, dict[str, Any]]:
    """Turn a frame into the bytes of a ``.csv`` or ``.jsonl`` file and the schema to read them back exactly.

    The schema holds each column's dtype, the mark that stands for a missing value, and ``frame.attrs``.
    The index is not kept. Numbers keep every digit, ``None`` and ``""`` stay different.

    >>> data, schema = encode_frame("x.csv", pd.DataFrame({"text": ["a", None], "share": [0.1, 1.0]}))
    >>> data
    b'text,share\\na,0.1\\n,1.0\\n'
    >>> decode_frame("x.csv", data, schema)["share"].tolist()
    [0.1, 1.0]

    Raises:
        ValueError: for another ending, for column names that are not unique strings, for a named index, and
            for values that the format would change (lists in a ``.csv``, tuples or objects in a ``.jsonl``).
    """
    _check_frame(name, frame)
    frame = frame.reset_index(drop=True)
    schema: dict[str, Any] = {
        "columns": {column: str(dtype) for column, dtype in frame.dtypes.items()},
        "attrs": json.loads(json.dumps(frame.attrs, default=str)),
    }
    if name.endswith(".csv"):
        texts = _texts(frame)
        schema["missing"] = _unused_mark(name, frame, texts)
        # a lone carriage return ends a line for readers, but makes no writer quote the cell
        quoting = csv.QUOTE_NONNUMERIC if any("\r" in text for text in texts) else csv.QUOTE_MINIMAL
        text = frame.to_csv(index=False, na_rep=schema["missing"], lineterminator="\n", quoting=quoting)
        data = text.encode("utf-8")
    else:
        data = _json_lines(name, frame)
    _check_round_trip(name, frame, data, schema)
    return data, schema


def decode_frame(name: str, data: bytes, schema: dict[str, Any]) -> pd.DataFrame:
    """Read a frame back from the bytes and the schema of ``encode_frame``."""
    # pandas 2 has no "str" dtype of its own: there this is object, with the strings as they are
    kinds = schema["columns"].items()
    dtypes: dict[str, Any] = {column: str if dtype == "str" else dtype for column, dtype in kinds}
    if name.endswith(".csv"):
        frame = pd.read_csv(io.BytesIO(data), dtype=dtypes, na_values=[schema["missing"]], **_EXACT)
    else:
        rows = [json.loads(line) for line in data.decode("utf-8").split("\n") if line]
        columns = {name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in dtypes.items()}
        frame = pd.DataFrame(columns)
    frame.attrs.update(schema["attrs"])
    return frame


def _temporary_sibling(path: Path) -> Path:
    """Return a new hidden name beside ``path``; what killed writes of this machine left there goes first."""
    here = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    for left in path.parent.glob(f".{glob.escape(path.name)}.{here}-*-*.tmp"):
        owner = left.name.removesuffix(".tmp").rsplit("-", 2)[1]
        if owner.isdecimal() and not _is_running(int(owner)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{here}-{os.getpid()}-{secrets.token_hex(6)}.tmp")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def check_file(name: str) -> None:
    """Raise ValueError for a name that is not that of a frame's file."""
    if not isinstance(name, str) or not name.endswith((".csv", ".jsonl")):
        raise ValueError(f"name must end in .csv (numbers) or .jsonl (texts), got {name!r}")


def _check_frame(name: str, frame: pd.DataFrame) -> None:
    check_file(name)
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{name} must be given a pandas DataFrame, got {type(frame).__name__}")
    if not all(isinstance(column, str) for column in frame.columns) or not frame.columns.is_unique:
        raise ValueError(f"{name}: column names must be strings and unique, got {list(frame.columns)}")
    if frame.columns.empty:
        raise ValueError(f"{name} must have at least one column, got a frame with none")
    if frame.index.nlevels > 1 or frame.index.name is not None:
        raise ValueError(f"{name}: the index is not stored; reset_index() keeps {list(frame.index.names)}")


def _texts(frame: pd.DataFrame) -> set[str]:
    """Return the column names and every cell that is not a number."""
    others = [frame[column] for column in frame.columns if not pd.api.types.is_numeric_dtype(frame[column])]
    return set(frame.columns).union(*(map(str, series.dropna()) for series in others))


def _unused_mark(name: str, frame: pd.DataFrame, texts: set[str]) -> str:
    """Return a mark for missing values that no cell of the frame holds as text."""
    # one column of empty cells would be empty lines, which no CSV reader can tell from the end of the file
    marks = _MISSING_MARKS if frame.shape[1] > 1 else _MISSING_MARKS[1:]
    if not (unused := [mark for mark in marks if mark not in texts]):
        raise ValueError(f"{name}: the texts use every mark for a missing value {marks}; store it as .jsonl")
    return unused[0]


def _json_lines(name: str, frame: pd.DataFrame) -> bytes:
    cells = frame.astype(object).where(frame.notna(), None)
    columns = {column: cells[column].tolist() for column in frame.columns}
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    with told(f"{name} can hold texts, numbers, lists and dicts of them", TypeError):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    return "".join(lines).encode("utf-8")


def _check_round_trip(name: str, frame: pd.DataFrame, data: bytes, schema: dict[str, Any]) -> None:
    """Refuse to write what would not come back: better an error now than a changed value later."""
    columns = f"; columns {schema['columns']}"
    with told(f"{name} would not read back", ValueError, TypeError, hint=columns):
        back = decode_frame(name, data, schema)
    for column in frame.columns:
        try:
            pd.testing.assert_series_equal(frame[column], back[column], check_exact=True)
        except (AssertionError, KeyError) as error:
            way_out = "store it as .jsonl" if name.endswith(".csv") else "use plain texts, numbers and lists"
            changes = f"column {column!r} ({frame[column].dtype}) would change when read back"
            raise ValueError(f"{name}: {changes}; {way_out}") from error
