"""The scripts of benchmarks/ name what is there: no run of the tests starts them."""

from __future__ import annotations

import ast
from pathlib import Path

import workbench


def defined(path: Path) -> set[str]:
    """Return the names that a file binds, and those of the files beside it, if it is a package's first."""
    names = {one.stem for one in path.parent.iterdir()} if path.stem == "__init__" else set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names


def file_of(root: Path, module: str) -> Path | None:
    """Return the file of a module of ours, None for others'."""
    parts = module.split(".")
    places = [root / "benchmarks" / f"{module}.py", root.joinpath(*parts).with_suffix(".py")]
    places.append(root.joinpath(*parts, "__init__.py"))
    return next((path for path in places if path.is_file()), None)


def test_what_a_script_imports_of_ours_is_there(root):
    missing, seen = [], 0
    for path in (root / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            file = file_of(root, node.module or "") if isinstance(node, ast.ImportFrom) else None
            if file is not None:
                seen += 1
                lacking = {alias.name for alias in node.names} - defined(file)
                missing += [f"{path.name}: {node.module}.{name}" for name in sorted(lacking)]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench"):
                missing.append(f"{path.name}: {node.module}")
    assert seen > 50
    assert not missing


def test_what_a_script_takes_from_the_package_is_public(root):
    for path in (root / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "wb":
                assert hasattr(workbench, node.attr), f"{path.name}: wb.{node.attr}"
