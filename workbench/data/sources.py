"""Where data sets come from: rows of a local file or of a hub set, in an order given by a seed (no torch).

The hub is read as a stream through ``datasets``: only as many rows as the sample needs. Each hub set can
also be read from a local copy of its repository (``location=``), which is what a machine without a network
needs.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.checks import told
from workbench.data.files import ENDINGS, at_home, read_rows
from workbench.places import toml_beside

#: how long the hub may take to say that it is there
SECONDS_FOR_THE_HUB = 10
#: of a large set, rows that are permuted at once, so that no more of them are in memory
PAGE = 1024


@dataclass(frozen=True)
class HubSet:
    """Where a public data set lies on the hub.

    Attributes:
        repo: hub id.
        config: configuration name, or None.
        files: JSON-lines files with their weights, read by path; empty where the repository's card says them.
        whole: small enough to be read whole, so that a sample is uniform over all of it.
        licence: as its source states it.
        split: which part of it the name stands for, where it is not the one asked for.
        here: names of its file in a folder of public sets, the first that is there.
    """

    repo: str
    config: str | None = None
    files: Mapping[str, float] = field(default_factory=dict)
    whole: bool = True
    licence: str = ""
    split: str | None = None
    here: Sequence[str] = ()


#: what `sources.toml` says: public sets by name, and forms of instruction sets
TABLES: dict[str, dict[str, Any]] = toml_beside(__file__)
CORPORA = {name: HubSet(**stated) for name, stated in TABLES["corpora"].items()}
INSTRUCTION_SETS = {name: HubSet(**stated) for name, stated in TABLES["instructions"].items()}


@dataclass(frozen=True)
class Draw:
    """Which rows of a source are taken.

    Attributes:
        n: how many; None for all.
        seed: of the order. All rows, and none skipped, come in their own order.
        skip: leave out so many of the sample's beginning, which a draw with another ``n`` takes.

    Raises:
        ValueError: for a number out of range.
    """

    n: int | None
    seed: int = 0
    skip: int = 0


@dataclass(frozen=True)
class Source:
    """An open source: its rows, or streams of a large hub set to be drawn from.

    Attributes:
        name: what to call it in an error.
        rows: all rows; None for a large set.
        streams: of a large set, each with its weight.
        revision: commit of the hub repository, None where it is not known.
    """

    name: str
    rows: Sequence[Any] | None
    streams: tuple[tuple[Iterable[Any], float], ...] = ()
    revision: str | None = None

    def sample(self, use: Callable[[int, Any], Any], draw: Draw, why: Callable[[], str]) -> list[Any]:
        """Return what ``use`` makes of the rows that are drawn.

        Args:
            use: takes a row's index and the row; returns None to pass it over.
            draw: which rows, those passed over not counted.
            why: says which were passed over.

        Raises:
            ValueError: for fewer usable rows than are drawn, or none.
        """
        in_order = draw.n is None and not draw.skip
        rows = self._drawn(draw.seed) if self.rows is None else numbered(self.rows, draw, in_order)
        made = (use(index, row) for index, row in rows)
        end = None if draw.n is None else draw.skip + draw.n
        found = list(itertools.islice((one for one in made if one is not None), draw.skip, end))
        behind = f" behind the {draw.skip} skipped" if draw.skip else ""
        if not found:
            raise ValueError(f"{self.name} has no usable row{behind} ({why()})")
        if draw.n is not None and len(found) < draw.n:
            usable = f"{len(found)} for {self.name}, its usable rows{behind} ({why()})"
            raise ValueError(f"n must be at most {usable}, got {draw.n}; None takes them all")
        return found

    def _drawn(self, seed: int) -> Iterator[tuple[int, Any]]:
        """Draw rows from the streams' beginnings: which stream by its weight, which row by a permutation.

        A page of a stream is permuted, and the next one read when all of it is used.
        """
        rng = np.random.default_rng(seed)
        weights = np.array([weight for _, weight in self.streams])
        left = weights / weights.sum()
        pages = [max(1, round(share * PAGE / 8)) * 8 for share in left]
        draws = [
            _shuffled_pages(iter(stream), page, np.random.default_rng([seed, k]))
            for k, ((stream, _), page) in enumerate(zip(self.streams, pages, strict=True))
        ]
        while left.any():
            chosen = int(rng.choice(len(draws), p=left / left.sum()))
            drawn = next(draws[chosen], None)
            if drawn is None:
                left[chosen] = 0.0
            else:
                yield drawn


def in_folder(name: str, known: Mapping[str, HubSet], data: str | Path | None) -> Path | None:
    """Return the file of a hub set in a folder of public sets as jsonl, None where it has none.

    Raises:
        ValueError: for a folder that is not there.
    """
    if data is None:
        return None
    if not (folder := at_home(str(data))).is_dir():
        raise ValueError(f"data must be a folder with public sets as jsonl, got {str(data)!r}, which is none")
    files = known[name].here if name in known else ()
    return next((folder / file for file in files if (folder / file).is_file()), None)


def open_source(
    name: str | Path,
    known: Mapping[str, HubSet],
    files: Mapping[str, Sequence[Path]],
    draw: Draw,
    *,
    other: str,
    hub: HubSet | None = None,
    split: str = "train",
    location: str | Path | None = None,
    data: str | Path | None = None,
) -> Source:
    """Find and open a source by its name.

    Args:
        name: of a set, or a file.
        known: hub sets by name.
        files: sets that lie in files here, by name.
        draw: what will be drawn.
        other: what else a name may be, for the error.
        hub: what a name that is none of these stands for.
        split: ``train``, ``validation`` or ``test`` of a hub set.
        location: a local copy of the hub repository to read instead of the hub.
        data: a folder of public sets as jsonl; a hub set that it holds is read from there.

    Raises:
        ValueError: for a name that is none of these, ``n=None`` of a large set, a split that is not there,
            a hub that cannot be reached.
    """
    label, path = str(name), at_home(name)
    if local := in_folder(label, known, data):
        return Source(label, read_rows(local))
    if found := known.get(label):
        if draw.n is None and not found.whole:
            raise ValueError(f"n must be a number for {label}, which is too large to be read whole; got None")
        return _open_hub(label, found, split, location)
    if hub and not (label in files or label.lower().endswith(ENDINGS) or path.exists()):
        return _open_hub(label, hub, split, location)
    if label not in files:
        check_file(label, [*files, *known], other)
    if split != "train" or location is not None:
        raise ValueError(f"split and location are for sets of the hub, not {label}; got {split, location}")
    return Source(label, [row for file in files.get(label, [path]) for row in read_rows(file)])


def check_file(name: str, names: Iterable[str], other: str) -> None:
    """Raise ValueError, with the names that are near, unless a name that none of these is a file."""
    path = at_home(name)
    if path.is_file():
        return
    near = difflib.get_close_matches(name.lower(), [*names], n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    why = "that is a folder" if name and path.is_dir() else "no such file exists"
    allowed = f"one of {', '.join(names)}, a file ending in {', '.join(ENDINGS)}, or {other}"
    raise ValueError(f"name must be {allowed}; got {name!r}, and {why}{hint}")


def named_columns(row: Any, label: str, index: int) -> Mapping[str, Any]:
    """Return a row that has columns.

    Raises:
        ValueError: for any other, with its number, from 1.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{label} must hold rows with named columns, got {row!r:.60} as row {index + 1}")
    return row


def as_text(value: Any, where: str) -> str:
    """Return a field of a row as text, ``""`` for one that is missing; ``where`` says where it is.

    Raises:
        ValueError: for what holds several values, and for text that is not Unicode.
    """
    if isinstance(value, list | tuple | Mapping | bytes):
        raise ValueError(f"{where} must be text, got {value!r:.60}")
    text = "" if value is None or value != value else str(value)
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{where} must be text, got half a surrogate pair in {text!r:.60}")
    return text


def numbered(rows: Sequence[Any], draw: Draw, in_order: bool) -> Iterator[tuple[int, Any]]:
    """Yield (index, row), in order or in one given by the seed."""
    order = range(len(rows)) if in_order else np.random.default_rng(draw.seed).permutation(len(rows))
    return ((int(index), rows[index]) for index in order)


def _open_hub(name: str, source: HubSet, split: str, location: str | Path | None) -> Source:
    """Open a hub set or its local copy: as one stream, or as one a file."""
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    split = source.split or split
    if source.files and split != "train" and "{split}" not in min(source.files):
        raise ValueError(f"split must be 'train' for {name}, got {split!r}")
    place = location or f"the hub ({source.repo})"
    hint = ". Without a network give location= a local copy of the repository, data= a folder with the "
    hint += "public sets as jsonl, or name a file"
    # the classes of errors differ between releases of the client; each means "not there"
    with told(f"{name} could not be opened at {place}", Exception, hint=hint):
        if location is not None:
            root = repository = str(at_home(location))
            found = re.search(r"/snapshots/([0-9a-f]{40})\b", root)
            commit = found and found[1]
        else:  # asked once and briefly: left alone, the library retries for half a minute
            commit = HfApi().dataset_info(source.repo, timeout=SECONDS_FOR_THE_HUB).sha
            root, repository = f"hf://datasets/{source.repo}@{commit}", source.repo
        if source.files:
            paths = [f"{root}/{file.format(split=split)}" for file in source.files]
            # as lines of text: RedPajama's rows differ in their columns, which the json reader refuses
            builders = [load_dataset_builder("text", data_files=path) for path in paths]
            opened = [builder.as_streaming_dataset(split="train") for builder in builders]
            streams = [(json.loads(row["text"]) for row in rows) for rows in opened]
        else:
            builder = load_dataset_builder(repository, source.config, revision=commit)
            streams = [builder.as_streaming_dataset(split=split)]
        rows = [*streams[0]] if source.whole else None
    weights = source.files.values() or [1.0]
    return Source(name, rows, tuple(zip(streams, weights, strict=True)), commit)


def _shuffled_pages(rows: Iterator[Any], page: int, rng: np.random.Generator) -> Iterator[tuple[int, Any]]:
    for number, found in enumerate(iter(lambda: list(itertools.islice(rows, page)), [])):
        yield from ((number * page + int(k), found[k]) for k in rng.permutation(len(found)))
