"""The tables of a run for a paper, from its frames, and the names of variants that a reader understands."""

from __future__ import annotations

import pandas as pd

from workbench.tables.markup import WORDS


def reader_name(variant: str) -> str:
    """Return a variant's name in words, where it ends in how it was healed; any other as it is.

    >>> reader_name("pruned-sft"), reader_name("pruned-self-distilled"), reader_name("base")
    ('pruned + SFT', 'pruned + self-distilled', 'base')
    """
    for word in sorted(WORDS["methods"], key=len, reverse=True):
        before = variant[: -len(word)]
        if variant.lower().endswith(word) and before.rstrip("-_.+") not in ("", before):
            method = str(WORDS["methods"][word])
            return f"{before.rstrip('-_.+')} + {method if method.isupper() else method.lower()}"
    return variant


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose variants have names that a reader understands; all keep theirs where two would share one."""
    columns = [name for name in ("variant", "against", "series") if name in frame]
    names = {name: reader_name(str(name)) for column in columns for name in frame[column].unique()}
    if len(set(names.values())) < len(names):
        return frame
    return frame.assign(**{column: frame[column].map(names) for column in columns})
