"""Count the package: code lines (no docstrings, comments, blank lines) by room, and the size of functions."""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "workbench"
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold code: no docstring, no comment alone, nothing blank."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                lines -= set(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    return lines


def functions(source: str) -> list[int]:
    """Return the code lines of each function, its own line counted, its docstring not."""
    lines = code_lines(source)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [sum(node.lineno <= line <= (node.end_lineno or 0) for line in lines) for node in found]


def main() -> int:
    """Print the counts; return 0."""
    rooms: Counter[str] = Counter()
    sizes: list[int] = []
    files = sorted(PACKAGE.rglob("*.py"))
    for file in files:
        source = file.read_text(encoding="utf-8")
        inside = file.relative_to(PACKAGE)
        rooms[inside.parts[0]] += len(code_lines(source))
        sizes += functions(source)
    for room, lines in sorted(rooms.items(), key=lambda item: -item[1]):
        print(f"{lines:7,}  {room}")
    sizes.sort()
    print(f"{sum(rooms.values()):7,}  code lines in {len(files)} files")
    p90 = sizes[len(sizes) * 9 // 10]
    print(f"{len(sizes):7,}  functions: median {statistics.median(sizes):.0f}, p90 {p90}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
