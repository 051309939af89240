"""Calibration texts, by name or from a file, sampled with a seed (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from workbench.data import sources
from workbench.data.sources import CORPORA, Draw, Source, open_source
from workbench.digests import digest
from workbench.places import demo_path
from workbench.runs.content import identity, named

DEMO_CORPORA = ("stories", "encyclopedia", "dialogues", "german")
DEMO_TEXTS = {"demo": DEMO_CORPORA} | {f"demo-{name}": (name,) for name in DEMO_CORPORA}


class Texts(list[str]):
    """A list of texts that remembers where they came from.

    Attributes:
        source: JSON values: name, n, seed, skip, revision of a hub set, rows looked at, how many were empty,
            too short or repeated the skipped ones and so passed over, how many texts occur again.
    """

    source: dict[str, Any]


def load_texts(
    name: str | Path | Sequence[str] = "demo",
    *,
    n: int | None = 128,
    seed: int = 0,
    skip: int = 0,
    min_length: int = 0,
    tokenizer: Any = None,
    column: str = "text",
    split: str = "train",
    location: str | Path | None = None,
    data: str | Path | None = None,
) -> Texts:
    """Load calibration texts: a sample without replacement, the same for the same seed.

    SDD (A.3) uses 128 texts of at most 4096 tokens. The default follows the number; the maximum length is
    cut by the function that reads the texts (``angular_distances(max_length=4096)``). The sample is uniform
    over all rows of a file, a demo corpus or a list. A large hub corpus is read from its beginning, 1024
    documents at a time (RedPajama: from each domain, in proportion to its size), and the sample is drawn
    from them, the next as many when they are used up. Empty documents are passed over and counted.

    A smaller ``n`` gives the beginning of a larger one. Texts that are not among them come with ``skip``:
    ``load_texts(name, n=24, skip=128)`` are 24 others than ``load_texts(name, n=128)``, of the same seed.

    Args:
        name: ``demo`` (all its corpora mixed), ``demo-stories``, ``demo-encyclopedia``, ``demo-dialogues``,
            ``demo-german``, ``c4``, ``redpajama``, ``slimpajama``, ``wikitext2`` (one text a line of the
            articles), the path of a ``.jsonl``, ``.json``, ``.csv`` or ``.txt`` file (one text a line), also
            with ``.gz`` behind it, or of a ``.parquet`` file, or a list.
        n: number of texts; None for all (not of a large corpus). A list of at most ``n`` texts is taken as
            it is.
        seed: of the sample, 0 or more.
        skip: texts at the sample's beginning to leave out; none of them is returned, even where the set holds
            it again.
        min_length: shortest text to take, in tokens of ``tokenizer``, or in characters where none is given.
        tokenizer: counts ``min_length`` in its tokens, special tokens not counted.
        column: the column of a file or hub set that holds the texts.
        split: ``train``, ``validation`` or ``test`` of a hub corpus.
        location: a local copy of the hub repository to read instead of the hub.
        data: a folder with public sets as jsonl (``c4.jsonl``, ...): a hub corpus that it holds is read from
            there.

    Returns:
        The texts, a list with an attribute ``source``: JSON values that belong with a result's provenance.

    Raises:
        ValueError: for an unknown name, ``n`` below 1 or above what there is, an empty text in a list, a
            missing column, a damaged file, a row that is no text, a hub that cannot be reached.

    >>> texts = load_texts(["one", "two", "three"], n=2, seed=0)
    >>> len(texts), texts.source["name"]
    (2, 'list')
    >>> set(load_texts(["one", "two", "three"], n=1, skip=2)) & set(texts)
    set()
    """
    draw = Draw(n, seed, skip)
    source = _source(name, draw, split=split, location=location, data=data)
    long_enough = partial(_is_long, min_length, tokenizer)
    if not isinstance(name, str | Path) and not skip and n and n >= sum(map(long_enough, source.rows or ())):
        draw = Draw(None, seed)  # all of a list, in its order
    seen: Counter[str] = Counter()
    skipped: set[str] = set()

    def usable(index: int, row: Any) -> str | None:
        text = _text_of(row, column, source.name, index)
        kind = "empty" if not text.strip() else "usable" if long_enough(text) else "too_short"
        if kind == "usable" and seen["usable"] < skip:
            skipped.add(text)
        elif text in skipped:
            kind = "repeated"
        seen[kind] += 1
        return text if kind == "usable" else None

    found = source.sample(usable, draw, lambda: f"{seen['empty']} are empty, {seen['too_short']} too short")
    texts = Texts(found)
    texts.source = {"name": source.name, "n": len(texts), "seed": seed, "skip": skip}
    texts.source |= {"min_length": min_length, "revision": source.revision, "looked_at": seen.total()}
    texts.source |= {kind: seen[kind] for kind in ("empty", "too_short", "repeated")}
    texts.source |= {"duplicates": len(texts) - len(set(texts))}
    return texts


def fingerprint(obj: Any) -> str:
    """Return a SHA-256 of texts, a frame, or a dict of JSON values: the same content, the same fingerprint.

    Raises:
        ValueError: for what no fingerprint can follow (an object of any other kind).

    >>> fingerprint(["a", "b"]) == fingerprint(["a", "b"]), fingerprint(["a", "b"]) == fingerprint(["ab"])
    (True, False)
    """
    return digest(named(obj, "obj") if isinstance(obj, dict) else identity(obj, "obj"))


def _source(name: Any, draw: Draw, **place: Any) -> Source:
    if not isinstance(name, str | Path):
        return Source("list", _checked_list(name))
    files = {one: [demo_path("texts") / f"{part}.jsonl" for part in DEMO_TEXTS[one]] for one in DEMO_TEXTS}
    return open_source(name, CORPORA, files, draw, other="a list of texts", **place)


def _is_long(least: int, tokenizer: Any, text: str) -> bool:
    return len(text if tokenizer is None else tokenizer(text, add_special_tokens=False)["input_ids"]) >= least


def _checked_list(texts: Any) -> list[str]:
    wrong = isinstance(texts, Mapping | set | bytes) or hasattr(texts, "columns")
    if wrong or not isinstance(texts, Iterable):
        raise ValueError(f"name must be a name, a path or a list of texts, got {type(texts).__name__}")
    rows = list(texts)
    for index, text in enumerate(rows):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"texts must be strings that are not empty; number {index} is {text!r:.60}")
    return rows


def _text_of(row: Any, column: str, label: str, index: int) -> str:
    """Return a row's text; without a column, the row itself."""
    if isinstance(row, str):
        return sources.as_text(row, f"row {index + 1} of {label}")
    row = sources.named_columns(row, label, index)
    if column not in row:
        raise ValueError(f"column must be one of {[*row]} for {label} (row {index + 1}), got {column!r}")
    return sources.as_text(row[column], f"column {column} of row {index + 1} of {label}")
