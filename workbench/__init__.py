"""Remove layers from language models, look before you cut, and win the quality back.

Every name in ``public.toml`` is importable from ``workbench`` itself. The modules behind them load on first
use (torch, transformers and peft take seconds to import; ``import workbench`` takes milliseconds).
"""

from __future__ import annotations

import tomllib
from importlib import import_module
from inspect import isfunction
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

#: the public names, by the file that defines them: words in ``public.toml``
_PUBLIC: dict[str, str] = tomllib.loads(Path(__file__).with_name("public.toml").read_text(encoding="utf-8"))
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    value = getattr(import_module(f"workbench.{_MODULE_OF[name]}"), name)
    if isfunction(value):
        value = import_module("workbench.arguments").looked_at(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, so that completion works before they are loaded."""
    return [*globals(), *__all__]
