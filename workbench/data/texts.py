"""Calibration texts and instruction sets, by name or from a file, sampled with a seed (no torch).

The hub is read as a stream through ``datasets``: only as many rows as the sample needs. Each hub set can
also be read from a local copy of its repository (``location=``), which is what a machine without a network
needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from workbench.data.sources import CORPORA, ENDINGS, _plain, hub_rows, permuted, read_rows
from workbench.digests import digest
from workbench.places import demo_path
from workbench.runs.content import identity

DEMO_CORPORA = ("stories", "encyclopedia", "dialogues", "german")
DEMO_TEXTS = {"demo": DEMO_CORPORA} | {f"demo-{name}": (name,) for name in DEMO_CORPORA}


class Texts(list[str]):
    """A list of texts that remembers where they came from.

    Attributes:
        source: plain values: name, seed, rows looked at, how many were empty or too short and so passed over.
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
        The texts, a list with an attribute ``source``: plain values that belong with a result's provenance.

    Raises:
        ValueError: for an unknown name, ``n`` below 1 or above what there is, an empty text in a list, a
            missing column, a hub that cannot be reached.
    """
    _check_n(n)
    accept = _accept(min_length, tokenizer)
    if not isinstance(name, str | Path):
        return _from_list(name, n, seed, accept)
    label = str(name)
    if label in CORPORA:
        rows = hub_rows(label, CORPORA[label], n, seed, split, location)
    else:
        rows = permuted(_local_texts(label), None if n is None else seed)
    texts = Texts()
    counts = {"looked_at": 0, "empty": 0, "too_short": 0}
    for _, row in _until(rows, texts, n):
        text = _text_of(row, column, label)
        counts["looked_at"] += 1
        if not text.strip():
            counts["empty"] += 1
        elif not accept(text):
            counts["too_short"] += 1
        else:
            texts.append(text)
    _check_enough(label, n, len(texts), f"{counts['empty']} are empty, {counts['too_short']} too short")
    texts.source = {"name": label, "n": len(texts), "seed": seed, "min_length": min_length, **counts}
    return texts


def fingerprint(obj: Any) -> str:
    """Return a SHA-256 of texts, a frame, or a dict of plain values: the same content, the same fingerprint.

    Raises:
        ValueError: for what no fingerprint can follow (a model, a function).
    """
    return digest(identity(obj, "obj"))


def _check_n(n: int | None) -> None:
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ValueError(f"n must be a whole number of at least 1, or None for all, got {n!r}")


def _check_enough(label: str, n: int | None, found: int, why: str) -> None:
    if found == 0 or (n is not None and found < n):
        raise ValueError(
            f"n must be at most {found} for {label}, its usable rows ({why}), got {n}; None takes them all"
            if found
            else f"{label} has no usable row ({why})"
        )


def _until(rows: Iterable[Any], taken: list[Any], n: int | None) -> Iterator[Any]:
    """Yield rows until ``taken``, which the caller fills, holds ``n``."""
    for row in rows:
        yield row
        if len(taken) == n:
            return


def _accept(min_length: int, tokenizer: Any) -> Callable[[str], bool]:
    if tokenizer is None:
        return lambda text: len(text) >= min_length
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) >= min_length


def _from_list(texts: Iterable[Any], n: int | None, seed: int, accept: Callable[[str], bool]) -> Texts:
    rows = list(texts)
    for index, text in enumerate(rows):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"texts must be strings that are not empty; number {index} of the list is {text!r}"
            )
    fit = [text for text in rows if accept(text)]
    _check_enough("the list", None, len(fit), f"{len(rows) - len(fit)} too short")
    result = Texts(fit if n is None or len(fit) <= n else [text for _, text in permuted(fit, seed)][:n])
    result.source = {"name": "list", "n": len(result), "seed": seed, "too_short": len(rows) - len(fit)}
    return result


def _local_texts(label: str) -> list[Any]:
    if label in DEMO_TEXTS:
        return [row for name in DEMO_TEXTS[label] for row in read_rows(demo_path("texts") / f"{name}.jsonl")]
    _check_file(label, [*DEMO_TEXTS, *CORPORA], "a list of texts")
    return read_rows(label)


def _check_file(label: str, names: list[str], other: str) -> None:
    if Path(label).is_file():
        return
    near = difflib.get_close_matches(label.lower(), names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"name must be one of {', '.join(names)}, a file ending in {', '.join(ENDINGS)}, or {other}; "
        f"got {label!r}, and no such file exists{hint}"
    )


def _text_of(row: Any, column: str, label: str) -> str:
    if isinstance(row, str):
        return row
    if column not in row:
        raise ValueError(f"column must be one of {', '.join(row)} for {label}, got {column!r}")
    return _plain(row[column])
