"""The parameters cells of the numbered notebooks: what they assign, and what a user gives instead."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from papermill.translators import PythonTranslator

from workbench.checks import near, told

RUN_PARAMETER = "run_name"


@dataclass(frozen=True)
class Assigned:
    """What one name in a parameters cell is set to.

    Attributes:
        source: as the cell writes it.
        value: None where it is no literal.
    """

    source: str
    value: Any


def parameters_of(path: Path, notebook: NotebookNode) -> dict[str, Assigned]:
    """Return the names that the parameters cell of a notebook assigns, in their order.

    Raises:
        ValueError: without exactly one cell tagged ``parameters``, for one that is no plain Python or assigns
            no ``run_name``.
    """
    cells = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(cells) != 1:
        raise ValueError(f"{path.name} must have exactly one cell tagged 'parameters', found {len(cells)}")
    with told(f"the parameters cell of {path.name} must be plain Python", SyntaxError):
        lines = ast.parse(cells[0]).body
    found: dict[str, Assigned] = {}
    for line in lines:
        value = getattr(line, "value", None)
        assigned = Assigned("" if value is None else ast.unparse(value), _literal(value))
        stored = [n.id for n in ast.walk(line) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        found |= dict.fromkeys(stored, assigned)
    if RUN_PARAMETER not in found:
        raise ValueError(f"parameters of {path.name} must have {RUN_PARAMETER}, they are {sorted(found)}")
    return found


def values_for(
    sources: Mapping[Path, NotebookNode],
    run_name: str,
    parameters: Mapping[str, Any],
    where_known: Mapping[str, Any] | None = None,
    others: Iterable[Path] = (),
) -> dict[Path, dict[str, Any]]:
    """Return for each notebook those of the given values that it has a name for, and the run's name.

    Args:
        sources: the notebooks by their paths.
        run_name: value of ``run_name`` in each.
        parameters: by name, for every notebook that has it; ``"01.n_texts"`` is for that notebook alone, and
            goes before ``"n_texts"``.
        where_known: further values, for those notebooks that have such a name; ``parameters`` go before them.
        others: notebooks that are not asked for; an error says which of them have a name.

    Raises:
        ValueError: for a name that no notebook has, a value of another kind than the one it replaces, or one
            that no cell can assign.
    """
    assigned = {path: parameters_of(path, notebook) for path, notebook in sources.items()}
    further = where_known or {}
    given = {path: {name: further[name] for name in further if name in assigned[path]} for path in sources}
    for name in sorted(parameters, key=lambda name: "." in name):
        _check_assignable(name, parameters[name])
        for path in _notebooks_with(name, assigned, others):
            own = name.rpartition(".")[2]
            _check_kind(name, parameters[name], assigned[path][own].value, path.stem)
            given[path][own] = parameters[name]
    return {path: {**given[path], RUN_PARAMETER: run_name} for path in sources}


def _notebooks_with(
    name: str, assigned: Mapping[Path, Mapping[str, Assigned]], others: Iterable[Path]
) -> Iterable[Path]:
    notebook, _, own = name.rpartition(".")
    meant = [path for path in assigned if not notebook or notebook in (path.stem, path.stem[:2])]
    if not meant:
        there = [path.stem for path in assigned]
        raise ValueError(f"{name} must be NN.{own} with one of the notebooks {there}, got {notebook!r}")
    if found := [path for path in meant if own in assigned[path]]:
        return found
    known = sorted({one for path in meant for one in assigned[path]})
    of = f" of {notebook}" if notebook else ""
    elsewhere = [path.stem[:2] for path in sorted(others) if own in _names_in(path)]
    hint = f"; {own} is one of notebook {', '.join(elsewhere)}" if elsewhere else near(own, known)
    raise ValueError(f"parameters{of} must be among {known}, got {[own]}{hint}")


def _names_in(path: Path) -> Iterable[str]:
    with suppress(OSError, ValueError):  # it is not asked for, whatever is wrong with it
        return parameters_of(path, nbformat.read(path, as_version=4))
    return ()


def _literal(value: Any) -> Any:
    with suppress(ValueError, AttributeError, TypeError):
        return ast.literal_eval(value)
    return None


def _check_kind(name: str, value: Any, default: Any, notebook: str) -> None:
    """Refuse a value of another kind than the one it replaces.

    None may be anything, a whole number None, a list one text, and a list or a text the dict of both.
    """
    kinds: dict[type, tuple[type, ...]] = {
        **{float: (int, float), int: (int, type(None))},
        **{list: (list, str, dict), str: (str, dict), dict: (dict, type(None))},
    }
    allowed = kinds.get(type(default), (type(default),))
    wrong = isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, allowed)
    if default is not None and wrong:
        raise ValueError(f"{name} of {notebook} must be like {default!r}, got {value!r}")


def _check_assignable(name: str, value: Any) -> None:
    """Check that the cell which papermill writes would assign this very value."""
    with suppress(ValueError):
        if ast.literal_eval(PythonTranslator.translate(value)) == value:
            return
    allowed = "a text, a finite number, True, False, None or a list or a dict of these"
    raise ValueError(f"parameter {name} must be {allowed}, got {value!r}")
