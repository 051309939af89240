"""Which notebook writes a result, as its code says."""

from __future__ import annotations

import json
import re

from workbench.places import NOTEBOOKS

#: a call that names what it writes
_WRITES = re.compile(
    r"""\.(?:frame|write|write_json)\(\s*(?P<filled>f?)(?P<quote>["'])(?P<name>[^"']+)(?P=quote)"""
)
#: how the names begin that a call writes without naming them
_WRITTEN_BY = {"variants/": ".save_variant(", "selection.json": "BlockPicker("}


def notebook_that_writes(name: str) -> str | None:
    """Return the notebook of this checkout that writes a file of that name (``*``: any text), or None.

    None says that no call with such a name was found, not that no notebook writes it.
    """
    codes: dict[str, str] = {}
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        codes[path.stem] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for exact in (True, False):  # a name as it stands goes before one with parts filled in
        for notebook, code in codes.items():
            if any(_is_named(call, name, exact) for call in _WRITES.finditer(code)):
                return notebook
    other = next((call for begin, call in _WRITTEN_BY.items() if name.startswith(begin)), None)
    return next((notebook for notebook, code in codes.items() if other and other in code), None)


def _is_named(call: re.Match[str], name: str, exact: bool) -> bool:
    """Return whether a call writes a name: letter by letter, or with any text where parts are filled in."""
    filled, written = call["filled"], call["name"]
    if exact or written.startswith("{"):  # which could be any name
        return not filled and written == name
    taken = re.sub(r"\{.*?\}", "*", written) if filled else written
    return _fits(name.replace("*", "x"), taken) or _fits(written, name)


def _fits(name: str, pattern: str) -> bool:
    return bool(re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]+"), name))
