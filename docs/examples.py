"""For the API pages: the doctests of a docstring become its section of examples."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_FIRST = re.compile(r"^>>> ", re.MULTILINE)


def with_examples(docstring: str) -> str:
    """Return a Google-style docstring with the lines from its first doctest on under ``Examples:``."""
    found = _FIRST.search(docstring)
    if found is None or "Examples:" in docstring:
        return docstring
    lines = docstring[found.start() :].splitlines()
    shown = "\n".join(f"    {line}" if line else "" for line in lines)
    return f"{docstring[: found.start()]}Examples:\n{shown}\n"


class Examples(Extension):
    """Rewrites each docstring as it is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Give the docstring of a module, class or function its section of examples."""
        if obj.docstring is not None:
            obj.docstring.value = with_examples(obj.docstring.value)
