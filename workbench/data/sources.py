"""Where data sets come from: rows of a local file or of a hub set, in an order given by a seed (no torch).

The hub is read as a stream through ``datasets``: only as many rows as the sample needs. Each hub set can
also be read from a local copy of its repository (``location=``), which is what a machine without a network
needs.
"""

from __future__ import annotations

import difflib
import gzip
import itertools
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import first_line

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".txt")
#: of a large set, rows read for each one asked for; the sample is drawn from them
CANDIDATES = 8


@dataclass(frozen=True)
class HubSet:
    """Where a public data set lies on the hub.

    Attributes:
        repo: hub id.
        config: configuration name, or None.
        files: JSON-lines files with their weights, read by path; empty where the repository's card says them.
        whole: small enough to be read whole, so that a sample is uniform over all of it.
        licence: as its source states it.
    """

    repo: str
    config: str | None = None
    files: tuple[tuple[str, float], ...] = ()
    whole: bool = True
    licence: str = ""


#: what `sources.toml` says: public sets by name, and forms of instruction sets
TABLES: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))


def _hub_sets(kind: str) -> dict[str, HubSet]:
    files = {name: tuple(told.get("files", {}).items()) for name, told in TABLES[kind].items()}
    return {name: HubSet(**{**told, "files": files[name]}) for name, told in TABLES[kind].items()}


CORPORA = _hub_sets("corpora")
INSTRUCTION_SETS = _hub_sets("instructions")


def read_rows(path: str | Path) -> list[Any]:
    """Read every row of a local file: dicts, or texts from a ``.txt``.

    Raises:
        ValueError: for another ending, or a line that is not JSON.
    """
    path = Path(path)
    if not path.name.endswith(ENDINGS):
        raise ValueError(f"a data file must end in {', '.join(ENDINGS)}, got {path}")
    if path.suffix == ".parquet":
        return [*pd.read_parquet(path).to_dict("records")]
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    if path.suffix == ".json":
        return list(_parsed(text, path, 1))
    # not splitlines(): a JSON string may hold U+2028, which that would break the line at
    lines = text.split("\n")
    if path.suffix == ".txt":
        return [line.rstrip("\r") for line in lines[: len(lines) - text.endswith("\n")]]
    return [_parsed(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def sample(
    source: HubSet | Sequence[Any],
    use: Callable[[int, Any], Any],
    *,
    name: str,
    n: int | None,
    seed: int,
    split: str = "train",
    location: str | Path | None = None,
) -> list[Any]:
    """Return what ``use`` makes of rows, until there are ``n`` of them.

    Args:
        source: a hub set, of which a large one is read only as far as needed, or all rows.
        use: takes a row's index and the row; returns None to pass it over.
        name: what to call the source in an error.
        n: how many to return; None for all, in the order of the rows.
        seed: of the order.
        split: ``train``, ``validation`` or ``test`` of a hub set.
        location: a local copy of the hub repository to read instead of the hub.

    Raises:
        ValueError: for ``n=None`` of a large set, a split that is not there, a hub that cannot be reached.
    """
    if not isinstance(source, HubSet):
        rows = permuted(source, n, seed)
    elif source.whole:
        rows = permuted([*_open(name, source, split, location)[0]], n, seed)
    elif n is None:
        raise ValueError(f"n must be a number for {name}, which is too large to be read whole; got None")
    else:
        rows = _sampled(_open(name, source, split, location), source, n, seed)
    made = (use(index, row) for index, row in rows)
    return list(itertools.islice((one for one in made if one is not None), n))


def check_enough(name: str, n: int | None, found: int, why: str) -> None:
    """Raise ValueError when fewer usable rows were found than asked for, or none; ``why`` others are not."""
    if found == 0:
        raise ValueError(f"{name} has no usable row ({why})")
    if n is not None and found < n:
        usable = f"{found} for {name}, its usable rows ({why})"
        raise ValueError(f"n must be at most {usable}, got {n}; None takes them all")


def check_file(name: str, names: Iterable[str], other: str) -> None:
    """Raise ValueError, with the names that are near, unless a name that none of these is a file."""
    if Path(name).is_file():
        return
    near = difflib.get_close_matches(name.lower(), [*names], n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"name must be one of {', '.join(names)}, a file ending in {', '.join(ENDINGS)}, or {other}; "
        f"got {name!r}, and no such file exists{hint}"
    )


def as_text(value: Any) -> str:
    """Return a field of a row as text, ``""`` for one that is missing."""
    return "" if value is None or value != value else str(value)


def permuted(rows: Sequence[Any], n: int | None, seed: int) -> Iterator[tuple[int, Any]]:
    """Yield (index, row) in an order given by the seed; for ``n`` of None, all, in the order of the rows."""
    order = range(len(rows)) if n is None else np.random.default_rng(seed).permutation(len(rows))
    return ((int(index), rows[index]) for index in order)


def _open(name: str, source: HubSet, split: str, location: str | Path | None) -> list[Iterable[Any]]:
    """Open the streams of a hub set or of its local copy: one, or one a file."""
    from datasets import load_dataset

    root = str(location) if location is not None else f"hf://datasets/{source.repo}"
    if source.files and split != "train" and "{split}" not in source.files[0][0]:
        raise ValueError(f"split must be 'train' for {name}, got {split!r}")
    try:
        if not source.files:
            return [load_dataset(str(location or source.repo), source.config, split=split, streaming=True)]
        files = [f"{root}/{file.format(split=split)}" for file, _ in source.files]
        # as lines of text: RedPajama's rows differ in their columns, which the json reader refuses
        texts = [load_dataset("text", data_files=file, split="train", streaming=True) for file in files]
        return [(json.loads(row["text"]) for row in rows) for rows in texts]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} could not be opened at {location or f'the hub ({source.repo})'}: {first_line(error)}. "
            "Without a network give location= a local copy of the repository, or name a file"
        ) from error


def _parsed(text: str, path: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} of {path} is not JSON: {error}") from error


def _sampled(streams: list[Iterable[Any]], source: HubSet, n: int, seed: int) -> Iterator[tuple[int, Any]]:
    """Draw rows from the beginnings of streams: which stream by its weight, which row by a permutation.

    Reads ``CANDIDATES`` rows for each one expected of a stream, permutes them, and goes on to the next as
    many when they are used up (because most were too short).
    """
    rng = np.random.default_rng(seed)
    weights = [weight for _, weight in source.files] or [1.0]
    left = np.array(weights) / sum(weights)
    draws = [
        _shuffled_pages(iter(stream), max(1, round(n * share)) * CANDIDATES, np.random.default_rng([seed, k]))
        for k, (stream, share) in enumerate(zip(streams, left, strict=True))
    ]
    while left.any():
        chosen = int(rng.choice(len(draws), p=left / left.sum()))
        drawn = next(draws[chosen], None)
        if drawn is None:
            left[chosen] = 0.0
        else:
            yield drawn


def _shuffled_pages(rows: Iterator[Any], page: int, rng: np.random.Generator) -> Iterator[tuple[int, Any]]:
    for first in itertools.count(0, page):
        found = list(itertools.islice(rows, page))
        if not found:
            return
        yield from ((first + int(k), found[k]) for k in rng.permutation(len(found)))
