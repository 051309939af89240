"""The words and patterns by which answers are found: ``answers.toml``, put together."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

from workbench.places import toml_beside

_TABLES: dict[str, Any] = toml_beside(__file__, "answers")
#: how numbers are told in words
NUMBERS = _TABLES["numbers"]
SCALES: dict[str, int] = NUMBERS["scales"]
SMALL = {word: k for k, word in enumerate(NUMBERS["ones"])}
SMALL |= {word: 20 + 10 * k for k, word in enumerate(NUMBERS["tens"])}


def _pieces() -> dict[str, str]:
    """Return lists of words and patterns as text, by name; each is a piece of those below it."""
    units = sorted({unit for kind in NUMBERS["kinds"] for unit in kind}, key=len, reverse=True)
    words = {"unit": units, "scale": SCALES, "number_word": [*SMALL, *SCALES, "none"]}
    words |= {"part": [*NUMBERS["parts"], "halve", *NUMBERS["small_parts"]]}
    words |= {"lead": NUMBERS["lead"], **_TABLES["words"]}
    found = {name: f"(?:{'|'.join(some)})" for name, some in words.items()}
    for name, lines in _TABLES["patterns"].items():
        found[name] = _filled("".join(lines), found)
    return found


def _filled(pattern: str, pieces: dict[str, str]) -> str:
    return re.sub(r"\{([a-z_]+)\}", lambda named: pieces[named[1]], pattern)


_PIECES = _pieces()
#: the patterns, compiled: ``FIND.statement`` is what "the answer is" matches
FIND = SimpleNamespace(**{name: re.compile(_PIECES[name]) for name in _TABLES["patterns"]})
#: how a response may state its answer -> pattern
STATED_FORMS: dict[str, str] = _TABLES["forms"]
#: LaTeX of numbers -> what stands for it in plain text
LATEX = [(re.compile(_filled(pattern, _PIECES)), plain) for pattern, plain in _TABLES["latex"]["rules"]]
