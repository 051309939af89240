"""Calibration texts, by name or from a file, sampled with a seed (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from workbench.checks import whole_number
from workbench.data import sources
from workbench.data.sources import CORPORA
from workbench.digests import digest
from workbench.places import demo_path
from workbench.runs.content import identity

DEMO_CORPORA = ("stories", "encyclopedia", "dialogues", "german")
DEMO_TEXTS = {"demo": DEMO_CORPORA} | {f"demo-{name}": (name,) for name in DEMO_CORPORA}


class Texts(list[str]):
    """A list of texts that remembers where they came from.

    Attributes:
        source: JSON values: name, seed, rows looked at, how many were empty or too short and so passed over.
    """

    source: dict[str, Any]


def load_texts(
    name: str | Path | Sequence[str] = "demo",
    *,
    n: int | None = 128,
    seed: int = 0,
    min_length: int = 0,
    tokenizer: Any = None,
    column: str = "text",
    split: str = "train",
    location: str | Path | None = None,
) -> Texts:
    """Load calibration texts: a sample without replacement, the same for the same seed.

    SDD (A.3) uses 128 texts of at most 4096 tokens. The default follows the number; the maximum length is
    cut by the function that reads the texts (``angular_distances(max_length=4096)``). From a file, a demo
    corpus or a list the sample is uniform over all rows, and a smaller ``n`` gives the beginning of a
    larger one. Of a large hub corpus only the beginning is read, eight documents for each one asked for
    (RedPajama: from each domain, in proportion to its size), and the sample is drawn from them. Empty
    documents are passed over and counted.

    Args:
        name: ``demo`` (all its corpora mixed), ``demo-stories``, ``demo-encyclopedia``, ``demo-dialogues``,
            ``demo-german``, ``c4``, ``redpajama``, ``slimpajama``, ``wikitext2`` (one text a line of the
            articles), the path of a ``.jsonl``, ``.jsonl.gz``, ``.json``, ``.parquet`` or ``.txt`` file
            (one text a line), or a list.
        n: number of texts; None for all (not of a large corpus). A list of at most ``n`` texts is taken as
            it is.
        seed: of the sample.
        min_length: shortest text to take, in tokens of ``tokenizer``, or in characters where none is given.
        tokenizer: counts ``min_length`` in its tokens, special tokens not counted.
        column: the column of a file or hub set that holds the texts.
        split: ``train``, ``validation`` or ``test`` of a hub corpus.
        location: a local copy of the hub repository to read instead of the hub.

    Returns:
        The texts, a list with an attribute ``source``: JSON values that belong with a result's provenance.

    Raises:
        ValueError: for an unknown name, ``n`` below 1 or above what there is, an empty text in a list, a
            missing column, a hub that cannot be reached.

    >>> texts = load_texts(["one", "two", "three"], n=2, seed=0)
    >>> len(texts), texts.source["name"]
    (2, 'list')
    """
    if n is not None:
        whole_number(n, "n")
    long_enough = _length_check(min_length, tokenizer)
    if isinstance(name, str | Path):
        label = str(name)
        source = CORPORA.get(label) or _local_texts(label)
    else:
        label, source = "list", _checked_list(name)
        n = None if n is None or n >= sum(map(long_enough, source)) else n  # all of them keep their order
    seen: Counter[str] = Counter()

    def usable(_: int, row: Any) -> str | None:
        text = _text_of(row, column, label)
        kind = "empty" if not text.strip() else "usable" if long_enough(text) else "too_short"
        seen[kind] += 1
        return text if kind == "usable" else None

    taken = sources.sample(source, usable, name=label, n=n, seed=seed, split=split, location=location)
    texts = Texts(taken)
    sources.check_enough(label, n, len(texts), f"{seen['empty']} are empty, {seen['too_short']} too short")
    passed_over = {"looked_at": seen.total(), "empty": seen["empty"], "too_short": seen["too_short"]}
    texts.source = {"name": label, "n": len(texts), "seed": seed, "min_length": min_length, **passed_over}
    return texts


def fingerprint(obj: Any) -> str:
    """Return a SHA-256 of texts, a frame, or a dict of JSON values: the same content, the same fingerprint.

    Raises:
        ValueError: for what no fingerprint can follow (a model, a function).

    >>> fingerprint(["a", "b"]) == fingerprint(["a", "b"]), fingerprint(["a", "b"]) == fingerprint(["ab"])
    (True, False)
    """
    return digest(identity(obj, "obj"))


def _length_check(min_length: int, tokenizer: Any) -> Callable[[str], bool]:
    if tokenizer is None:
        return lambda text: len(text) >= min_length
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) >= min_length


def _checked_list(texts: Iterable[Any]) -> list[str]:
    rows = list(texts)
    for index, text in enumerate(rows):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"texts must be strings that are not empty; number {index} of the list is {text!r}"
            )
    return rows


def _local_texts(label: str) -> list[Any]:
    if label in DEMO_TEXTS:
        files = [demo_path("texts") / f"{name}.jsonl" for name in DEMO_TEXTS[label]]
        return [row for file in files for row in sources.read_rows(file)]
    sources.check_file(label, [*DEMO_TEXTS, *CORPORA], "a list of texts")
    return sources.read_rows(label)


def _text_of(row: Any, column: str, label: str) -> str:
    if isinstance(row, str):
        return row
    if column not in row:
        raise ValueError(f"column must be one of {', '.join(row)} for {label}, got {column!r}")
    return sources.as_text(row[column])
