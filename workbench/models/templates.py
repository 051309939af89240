"""Chat templates: rendered on a fixed day, with nothing random, and under limits of steps and length.

A template comes with a model, so it is code of others: transformers' sandbox keeps it from files, the limits
here from going on for ever. ``models/chat.py`` calls this.
"""

from __future__ import annotations

import functools
import hashlib
import json
import marshal
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

from workbench.places import toml_beside

#: the day that every template is told: the one that Llama 3.1's takes by itself
PROMPT_DATE = datetime(2024, 7, 26)
_TABLE = toml_beside(__file__)
#: for a tokenizer without a chat template
PLAIN_TEMPLATE: str = _TABLE["plain"]
PLAIN_PROMPT: str = _TABLE["plain_prompt"]
#: rounds of loops and calls that a template may take for one chat
MAX_STEPS = 1_000_000
#: characters that a template may hold, or write beside the texts of a chat
MAX_LENGTH = 1_000_000
#: texts that a task's template keeps, and letters of one, both at most
_KEPT, _KEPT_LENGTH = 8192, 4096
_PLAIN = {str, int, float, bool, type(None), list, tuple, dict}


def rendered(source: str, marks: str, turns: list[dict[str, str]], options: Mapping[str, Any]) -> str:
    """Render a chat, with the system turn in front of the first user turn where the template has none."""
    system = turns[0]["content"] if turns[0]["role"] == "system" else None
    if system is None:
        return _written(source, marks, turns, options)
    others = turns[1:]
    if system.strip():
        try:
            text = _written(source, marks, turns, options)
            if system.strip() in text:
                return text
        except TemplateError:
            if not others:
                raise
        first = next((k for k, turn in enumerate(others) if turn["role"] == "user"), None)
        if first is None:
            raise TemplateError("it has no place for a system turn, and there is no user turn")
        others[first]["content"] = f"{system}\n\n{others[first]['content']}"
    return _written(source, marks, others, options)


def _written(source: str, marks: str, turns: list[dict[str, str]], options: Mapping[str, Any]) -> str:
    values = {**json.loads(marks), "date_string": PROMPT_DATE.strftime("%d %b %Y"), **options}
    values |= {"messages": turns, "tools": None, "documents": None}
    return _limited(_compiled(source), values, sum(len(turn["content"]) for turn in turns))


def _limited(template: Template, values: Mapping[str, Any], weight: int) -> str:
    """Return what a template writes, given up where it takes too many steps or letters beside its texts."""
    limits = _Limits(MAX_LENGTH + 4 * weight)
    before = _LIMITS.set(limits)
    try:
        pieces, length = [], 0
        for piece in template.generate(**values):
            pieces.append(piece)
            length = limits.allow(length + len(piece))
        return "".join(pieces)
    finally:
        _LIMITS.reset(before)


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    if len(source) > MAX_LENGTH:
        raise SecurityError(f"it has {len(source):,} characters, more than {MAX_LENGTH:,}")
    own = chat_template_utils._compile_jinja_template("").environment
    filters = {name: made for name, made in own.filters.items() if name != "random"}
    extensions = [type(one) for one in own.extensions.values()]
    bounded = _Bounded(filters, trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    bounded.globals = {**own.globals, **bounded.globals, "strftime_now": _day}
    bounded.globals.pop("lipsum", None)
    return bounded.from_string(source)


class LimitedTemplate:
    """A template of others, such as a task's, that renders in the sandbox and under the same limits.

    The last texts are kept by what they were made of: few-shot examples stand in every prompt of a task, and
    answers are asked for before and after.
    """

    def __init__(self, source: str, **environment: Any) -> None:
        self._template = _Bounded(**environment).from_string(source)
        self._kept: dict[bytes, str] = {}
        self._constant = "random" not in source

    def render(self, **values: Any) -> str:
        """Return the text.

        Raises:
            SecurityError: of jinja, where it reaches for Python, goes on for ever or grows too long.
        """
        made_of = b""
        if all(type(value) in _PLAIN for value in values.values()):
            with suppress(ValueError):  # of an object inside a list; 1, 1.0 and true differ
                made_of = hashlib.sha256(marshal.dumps(values, 2)).digest()
        if (known := self._kept.get(made_of)) is not None:
            return known
        text = _limited(self._template, values, _weight(values))
        if made_of and self._constant and len(text) <= _KEPT_LENGTH:
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[made_of] = text
        return text


class _Limits:
    """What one rendering may still take."""

    def __init__(self, length: int) -> None:
        self.steps, self.length = MAX_STEPS, length

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise SecurityError(f"it goes on after {MAX_STEPS:,} steps")

    def allow(self, length: int) -> int:
        if length > self.length:
            raise SecurityError(f"it writes more than {self.length:,} characters")
        return length


_LIMITS: ContextVar[_Limits] = ContextVar("limits")
_OF_JINJA = (Context, EvalContext, Environment)
_MOST_OF_A_RANGE = 100_000  # jinja's; here that of any list too, with all that is inside


def _day(form: str) -> str:
    return PROMPT_DATE.strftime(form)


def _sized(value: Any) -> Any:
    """Return a value that a template made, unless it is too long, or holds too much all in all."""
    limits = _LIMITS.get()
    limits.allow(len(value) if isinstance(value, str | list | tuple) else 0)
    seen, inside = 0, [value]
    while inside:  # a list of itself twice, and that again, is soon more than any computer can walk through
        one = inside.pop()
        if isinstance(one, list | tuple | dict):
            inside.extend(one.values() if isinstance(one, dict) else one)
            seen += len(one)
        if seen > _MOST_OF_A_RANGE:
            raise SecurityError(f"it makes a list of more than {_MOST_OF_A_RANGE:,} parts")
    limits.step(seen // 100)
    return value


def _affordable(name: str, values: list[Any]) -> None:
    """Refuse a filter, method or operator before it runs whose result would be much too long.

    No result is longer than its two largest arguments multiplied: a text by what each of its letters becomes,
    a list by what stands between, a text by a width, which a form such as ``%9d`` may tell.
    """
    limits = _LIMITS.get()
    form = str(values[0]) if values and (name.startswith("format") or name == _day.__name__) else ""
    widths = [int(width) for width in re.findall(r"[%:][^a-zA-Z%]*?(\d{1,18})", form)]
    values = values[:1] + values[2:] if name == "replace" else values  # what is replaced adds nothing
    sizes = sorted([1, 1, *widths, *map(_weight, values)])
    if sizes[-1] * sizes[-2] > 100 * limits.length:
        raise SecurityError(f"it writes more than {limits.length:,} characters")


def _weight(value: Any) -> int:
    """Return the size of a number, the length of a text, or that of all texts and lists in a list."""
    if isinstance(value, int):
        return abs(value)
    if isinstance(value, Undefined):
        return 0
    if not isinstance(value, str | list | tuple | dict):  # a range, or what is made one by one of some such
        return len(value) if hasattr(value, "__len__") else _MOST_OF_A_RANGE * hasattr(value, "__next__")
    total, inside = 0, [value]
    while inside and total <= 100 * MAX_LENGTH:
        one = inside.pop()
        total += len(one) if isinstance(one, str | list | tuple | dict) else 1
        if isinstance(one, list | tuple | dict):
            inside.extend(one.values() if isinstance(one, dict) else one)
    return total


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that looks at its arguments first."""

    @functools.wraps(function)
    def filtered(*arguments: Any, **options: Any) -> Any:
        values = [one for one in (*arguments, *options.values()) if not isinstance(one, _OF_JINJA)]
        if name in _TABLE["growing"]:
            _affordable(name, values)
        return function(*arguments, **options)

    return filtered


class _Counted:
    """What a loop runs over, each round a step."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Any]:
        for value in self.values:
            _LIMITS.get().step()
            yield value

    def __len__(self) -> int:
        return len(self.values)


class _Counting(NodeTransformer):
    """Lets the loops of a template be counted, and what its expressions make be measured."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "counted", [], [], None, None, lineno=node.lineno)
        return node

    def measured(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, "sized", [], [], None, None, lineno=node.lineno)

    visit_Add = visit_Concat = visit_Filter = visit_List = visit_Tuple = visit_Dict = measured


class _Bounded(ImmutableSandboxedEnvironment):
    """jinja's sandbox under limits of steps and length."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self, filters: Mapping[str, Any], **options: Any) -> None:
        super().__init__(**options)
        kept = {name: _checked(name, made) for name, made in filters.items()}
        self.filters = {**kept, "counted": _Counted, "sized": _sized}
        self.globals.pop("lipsum", None)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        _LIMITS.get().step(5)  # a call takes some five times as long as a round of a loop
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        name = getattr(function, "__name__", "")
        if function is _day or (isinstance(owner, str) and name in _TABLE["growing"]):
            _affordable(name, [*([] if function is _day else [owner]), *args, *kwargs.values()])
        return _sized(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _affordable("format", [left, right])
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and (operator == "**" or hasattr(value, "__len__")):
                _LIMITS.get().allow(times * (len(value) if operator == "*" else 1000))
        return super().call_binop(context, operator, left, right)

    def _parse(self, *args: Any) -> nodes.Template:
        parsed: nodes.Template = _Counting().visit(super()._parse(*args))
        return parsed
