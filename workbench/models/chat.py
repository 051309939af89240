"""Chats as text and as tokens, one way for generation, healing and evaluation.

A prompt follows from the turns and the template alone: the date is always ``PROMPT_DATE``, thinking is off
unless asked for, and words of the data that spell a control token stay words.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from workbench.checks import told
from workbench.models.templates import PLAIN_TEMPLATE, rendered

#: one turn of a chat: its role (system, user or assistant) and its content
Turn = Mapping[str, str]

_THOUGHT = r"<(?:\w+:)?think(?:ing)?>|\[THINK\]|◁think▷"
_OPEN_THOUGHT = re.compile(rf"({_THOUGHT})\s*\Z")
_THOUGHT_MARK = re.compile(rf"{_THOUGHT}|</(?:\w+:)?think(?:ing)?>|\[/THINK\]|◁/think▷")
#: stands inside what spells a control token while a template is rendered
_MARK = "\U000f0000"


#: tokenizer -> the state it was in, and what finds its control tokens
_KNOWN: WeakKeyDictionary[Any, tuple[Any, re.Pattern[str]]] = WeakKeyDictionary()


def render_chat(
    tokenizer: Any,
    turns: Sequence[Turn],
    *,
    thinking: bool = False,
    generation_prompt: bool = True,
    template: str | None = None,
) -> str:
    """Return a chat as one text, as ``apply_chat_template(tokenize=False)`` writes it on ``PROMPT_DATE``.

    A system turn that the template refuses, or leaves out, stands in front of the first user turn.

    Args:
        tokenizer: whose template is taken; ``PLAIN_TEMPLATE`` where it has none.
        turns: ``role`` (system, user, assistant) and ``content`` of each, at least one.
        thinking: let a model that can think aloud do so; without, a thought that the template opens is
            closed.
        generation_prompt: end where the assistant's answer begins.
        template: the name of another template of the tokenizer, or a template itself.

    Raises:
        ValueError: in one line, for no turns, or a template that fails, is longer than ``MAX_LENGTH``
            characters or takes more than ``MAX_STEPS`` steps.
    """
    source, turns = _source(tokenizer, template), _checked(turns)
    options = {"add_generation_prompt": generation_prompt, "enable_thinking": thinking, "thinking": thinking}
    with told(f"the chat template of {_name(tokenizer)} failed", Exception):  # whatever it does
        text = rendered(source, _special_marks(tokenizer), turns, options)
    return text if thinking or not generation_prompt else _OPEN_THOUGHT.sub(_closed, text)


def chat_ids(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    """Return a chat as tokens; what the turns say is text, also where it spells a control token.

    The begin mark stands where the template writes it; without a template, where the tokenizer adds it.

    Args:
        tokenizer: as for ``render_chat``.
        turns: as there.

    Raises:
        ValueError: as there.
    """
    turns, controls = _checked(turns), _controls(tokenizer)
    if spelled := any(_spelled(turn["content"], controls) for turn in turns):
        clean = [turn | {"content": turn["content"].replace(_MARK, "")} for turn in turns]
        turns = [turn | {"content": _marked(turn["content"], controls)} for turn in clean]
    text = render_chat(tokenizer, turns)
    ids = _marked_ids(tokenizer, text, controls) if spelled else _encoded(tokenizer, text)
    return ids if _has_template(tokenizer) else _around(tokenizer)[0] + ids


def text_ids(
    tokenizer: Any, text: str, *, begin: bool = True, end: bool = True, control: bool | None = None
) -> list[int]:
    """Return a text as tokens, with the begin mark once.

    Args:
        tokenizer: a transformers tokenizer.
        text: plain, or written by a chat template: such a text begins with a control token, or as the
            tokenizer's template begins a chat, and gets no begin mark beside what it has.
        begin: with the marks that the tokenizer puts around a text.
        end: with those behind it too.
        control: whether a control token spelled in the text is one; None: in a text written by a chat
            template only.
    """
    controls = _controls(tokenizer)
    written = _begins_chat(tokenizer, text, controls)
    lead, tail = _around(tokenizer) if begin and not written else ([], [])
    alive = written if control is None else control
    plain = alive or not _spelled(text, controls)
    ids = _encoded(tokenizer, text) if plain else _as_text(tokenizer, text, controls)
    return lead + ids + (tail if end else [])


def _checked(turns: Sequence[Turn]) -> list[dict[str, str]]:
    for turn in turns:
        texts = [turn.get(name) for name in ("role", "content")] if isinstance(turn, Mapping) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"a turn of a chat must have a role and a content, both text, got {turn!r:.80}")
    if not turns:
        raise ValueError("a chat must have at least one turn, got none")
    return [dict(turn) for turn in turns]


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _source(tokenizer: Any, template: str | None = None) -> str:
    """Return the text of the template that is taken."""
    if not template and not _has_template(tokenizer):
        return PLAIN_TEMPLATE
    with told(f"{_name(tokenizer)} has no such chat template", ValueError):
        return str(tokenizer.get_chat_template(template))


def _name(tokenizer: Any) -> str:
    return f"tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}"


def _special_marks(tokenizer: Any) -> str:
    return json.dumps(tokenizer.special_tokens_map, default=str)


def _closed(opened: re.Match[str]) -> str:
    mark = opened[1]
    return f"{mark}\n\n{mark[0]}/{mark[1:]}\n\n"


@lru_cache(maxsize=32)
def _probed(source: str, marks: str) -> tuple[str, ...]:
    """Return short chats as a template writes them, ``_MARK`` where the user, or the system, begins."""
    asked = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": "reply"}]
    texts = []
    for first in ("user", "system"):
        turns = [{"role": first, "content": _MARK}, *asked[first == "user" :]]
        with suppress(Exception):
            texts.append(rendered(source, marks, turns, {"add_generation_prompt": True}))
    return tuple(texts)


def _probes(tokenizer: Any) -> tuple[str, ...]:
    return _probed(_source(tokenizer), _special_marks(tokenizer)) if _has_template(tokenizer) else ()


def _controls(tokenizer: Any) -> re.Pattern[str]:
    """Return what finds the control tokens: the special ones, and others that the template writes.

    Kept for each tokenizer: asking one for its added tokens takes milliseconds, and texts come by thousands.
    """
    state = (len(tokenizer), getattr(tokenizer, "chat_template", None), _special_marks(tokenizer))
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != state:
        _KNOWN[tokenizer] = known = (state, _found_controls(tokenizer))
    return known[1]


def _found_controls(tokenizer: Any) -> re.Pattern[str]:
    written = "\0".join([_source(tokenizer), *_probes(tokenizer)]) if _has_template(tokenizer) else ""
    named, found = [*map(str, tokenizer.special_tokens_map.values())], {}
    for token in tokenizer.added_tokens_decoder.values():
        text = token.content.strip()
        own = token.special or token.content in named or (text in written and re.search(r"[^\w\s]", text))
        if own and len(text) > 1 and not _THOUGHT_MARK.fullmatch(text):
            found[text] = r"\s*" * token.lstrip + re.escape(text) + r"\s*" * token.rstrip
    return re.compile("|".join(found[text] for text in sorted(found, key=len, reverse=True)) or "(?!)")


def _spelled(text: str, controls: re.Pattern[str]) -> bool:
    """Return whether a text may spell a control token, also once it is normalised."""
    if controls.search(text):
        return True
    return not text.isascii() and controls.search(unicodedata.normalize("NFKC", text)) is not None


def _marked(text: str, controls: re.Pattern[str]) -> str:
    """Put ``_MARK`` into each control token that a text spells, so that none is left."""
    if not _spelled(text, controls):
        return text
    found = controls.sub(lambda match: re.sub(r"(\S)", rf"\1{_MARK}", match[0], count=1), text)
    return found if _MARK in found else re.sub(r"(\S)", rf"\1{_MARK}", text, count=1)


def _begins_chat(tokenizer: Any, text: str, controls: re.Pattern[str]) -> bool:
    openings = [one.partition(_MARK)[0] for one in _probes(tokenizer)]
    if any(opening and text.startswith(opening) for opening in openings):
        return True
    first = controls.match(text)
    fillers = (tokenizer.unk_token, tokenizer.pad_token, getattr(tokenizer, "mask_token", None))
    return first is not None and first[0].strip() not in fillers


def _encoded(tokenizer: Any, text: str, **options: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"]
    return ids


def _marked_ids(tokenizer: Any, text: str, controls: re.Pattern[str]) -> list[int]:
    """Tokenise a rendered chat; between two control tokens of the template, what holds a mark is text."""
    ids, run, before = [], "", ""
    for place, piece in enumerate(re.split(f"({controls.pattern})", text)):
        if _MARK in piece:
            ids += _encoded(tokenizer, run)
            ids += _behind(tokenizer, before, piece.replace(_MARK, ""), controls)
            run = ""
        else:
            run += piece
            before = piece if place % 2 else before
    return ids + _encoded(tokenizer, run)


def _behind(tokenizer: Any, before: str, text: str, controls: re.Pattern[str]) -> list[int]:
    """Tokenise a text that stands behind another: some put a space in front of a first word only."""
    alone = _as_text(tokenizer, text, controls)
    lead = _encoded(tokenizer, before)
    if not before or _encoded(tokenizer, f"{before}a")[len(lead) :] == _encoded(tokenizer, "a"):
        return alone
    for anchor in ("\n", "a", "."):
        first, both = _encoded(tokenizer, anchor), _as_text(tokenizer, f"{anchor}{text}", controls)
        if first and both[: len(first)] == first and tokenizer.unk_token_id not in first:
            return both[len(first) :]
    return alone


def _as_text(tokenizer: Any, text: str, controls: re.Pattern[str]) -> list[int]:
    """Tokenise a text without control tokens, whatever it spells."""
    ids = _encoded(tokenizer, text, split_special_tokens=True)
    added = tokenizer.added_tokens_decoder
    if not any(token in added and controls.fullmatch(added[token].content) for token in ids):
        return ids
    # some are found even so, those that are added but not special: not where they are in two
    first, *others = _marked(text.replace(_MARK, ""), controls).split(_MARK)
    none = re.compile("(?!)")
    return [*_encoded(tokenizer, first), *(i for one in others for i in _behind(tokenizer, "a", one, none))]


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts in front of a text and behind it."""
    bare, full = _encoded(tokenizer, "a"), tokenizer("a")["input_ids"]
    places = [k for k in range(len(full)) if full[k : k + len(bare)] == bare]
    return (full[: places[0]], full[places[0] + len(bare) :]) if places else ([], [])
