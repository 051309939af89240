"""Chat templates: the same on every day, and ended in one line when they go wrong or on for ever."""

from __future__ import annotations

import datetime
import time
from types import SimpleNamespace

import pytest
from jinja2 import Environment, StrictUndefined
from tiny import tiny_tokenizer
from transformers.utils import chat_template_utils

from workbench.models import templates
from workbench.models.chat import render_chat
from workbench.models.templates import MAX_LENGTH, PLAIN_PROMPT

GROWING = "{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = GROWN %}{% endfor %}"
ASK = [{"role": "user", "content": "Hi"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *ASK]
#: pieces that real templates are made of
TEMPLATES = {
    "dated": "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "given date": "{{ date_string }}{% for m in messages %}{{ m['content'] | trim }}{% endfor %}",
    "loops": "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{% endfor %}",
    "reversed": "{% for m in messages[::-1] if m.role != 'x' %}{{ m.content.split('i')[-1] }}{% endfor %}",
    "macro": "{% macro f(x, n=2) %}{{ x ~ '!' * n + '?' }}{% endmacro %}{{ f(messages[0].content) | upper }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
    "controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% endfor %}{{ eos_token }}{{ messages | tojson }}",
    "space": "\n  {% if true %}\n a\n  {%- endif %}\n\n",
    "filter block": "{% filter upper %}a{{ messages | length }}{% endfilter %}{{ '%s-%d' | format('x', 3) }}",
    "thinking": "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_writes_what_transformers_writes_but_for_the_date(template):
    tokenizer = tiny_tokenizer()
    turns = [*ASK, {"role": "assistant", "content": "Well."}, *ASK]
    options = {"enable_thinking": False, "date_string": "26 Jul 2024"}
    day = template.replace("strftime_now('%d %b %Y')", "date_string")
    expected = tokenizer.apply_chat_template(
        turns, chat_template=day, tokenize=False, add_generation_prompt=True, **options
    )
    assert render_chat(tokenizer, turns, template=template) == expected


def test_a_prompt_is_the_same_on_every_day(monkeypatch):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%A %d %B %Y %H:%M') }}" + tokenizer.chat_template
    today = render_chat(tokenizer, ASK)

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6, 7, 8)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert "2031" in tokenizer.apply_chat_template(ASK, tokenize=False)  # the clock is moved indeed
    assert render_chat(tokenizer, ASK) == today
    assert today.startswith("Friday 26 July 2024 00:00")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for a in 'x' * 9999 %}{% for b in 'x' * 9999 %}.{% endfor %}{% endfor %}", "steps"),
        (
            "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(90) }}",
            "steps",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "recursion"),
        ("{{ 'x' * 300000000 }}", "characters"),
        ("{{ 9 ** 9 ** 9 }}", "characters"),
        (
            GROWING.replace("GROWN", "n.s ~ n.s"),
            "characters",
        ),
        (
            GROWING.replace("GROWN", "n.s + n.s"),
            "characters",
        ),
        (
            GROWING.replace("GROWN", "[n.s, n.s] | join"),
            "characters",
        ),
        ("{{ range(99999) | join('x' * 99999) }}", "characters"),
        ("{{ messages | map('upper') | join('x' * 99999) }}", "characters"),
        ("{% set x = 'a' * 90000 %}{{ x.replace('a', x) }}", "characters"),
        ("{% set x = 'a' * 90000 %}{{ x | replace('a', x) }}", "characters"),
        ("{{ ('\t' * 9999).expandtabs(10 ** 9) }}", "characters"),
        ("{{ 'a' | center(10 ** 10) }}", "characters"),
        ("{{ '%0999999999d' | format(1) }}", "characters"),
        ("{{ '%0999999999d' % 1 }}", "characters"),
        ("{{ '{:>999999999}'.format('a') }}", "characters"),
        ("{{ '%s' % ([1] * 10 ** 9) }}", "characters"),
        ("{{ strftime_now('%0999999999Y') }}", "characters"),
        (GROWING.replace("GROWN", "[n.s, n.s]") + "{{ n.s == n.s | list }}", "parts"),
        (GROWING.replace("GROWN", "{'a': n.s, 'b': n.s}") + "{{ n.s | tojson }}", "parts"),
        (GROWING.replace("GROWN", "(n.s, n.s)") + "{{ n.s | string | length }}", "parts"),
        ("{% for i in range(9999) %}" + "x" * 999 + "{% endfor %}", "characters"),
        ("x" * (MAX_LENGTH + 1), "characters"),
        ("{{", "unexpected"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ raise_exception('Only\nuser turns') }}", "Only"),
        ("{{ messages[9].content }}", "no element"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages[0].content | random }}", "random"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_fails_or_never_ends_is_refused_in_one_line(template, words):
    tokenizer, began = tiny_tokenizer(), time.monotonic()
    tokenizer.name_or_path, tokenizer.chat_template = "org/odd", template
    with pytest.raises(ValueError) as error:
        render_chat(tokenizer, ASK)
    assert "org/odd" in str(error.value) and words in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 20


def test_the_limits_hold_for_each_chat_and_a_long_chat_is_within_them():
    tokenizer = tiny_tokenizer()
    long = [{"role": "user", "content": "x" * 3_000_000}]
    assert len(render_chat(tokenizer, long)) > 3_000_000
    many = [*ASK, {"role": "assistant", "content": "Yes"}] * 2000
    for _ in range(3):
        assert render_chat(tokenizer, many).count("Yes") == 2000


SILENT = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
REFUSING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + SILENT.replace(" if m.role != 'system'", "")
)


@pytest.mark.parametrize("template", [SILENT, REFUSING])
def test_a_system_turn_that_the_template_has_no_place_for_opens_the_first_user_turn(template):
    tokenizer = tiny_tokenizer()
    turns = [*SYSTEM, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Who?"}]
    assert render_chat(tokenizer, turns, template=template) == (
        "<user>Be brief.\n\nHi<assistant>Yes?<user>Who?"
    )
    assert turns[1]["content"] == "Hi"
    assert render_chat(tokenizer, turns).startswith("<|system|>Be brief.<|end|><|user|>Hi<|end|>")
    with pytest.raises(ValueError, match=r"no user turn|not supported"):
        render_chat(tokenizer, SYSTEM[:1], template=template)


def test_without_a_template_a_chat_is_plain():
    tokenizer = tiny_tokenizer(chat_template=False)
    for text in ("Hi", "a\nb\n", "{text}"):
        turns = [{"role": "user", "content": text}]
        assert render_chat(tokenizer, turns) == PLAIN_PROMPT.replace("{text}", text)
    several = [*SYSTEM, {"role": "assistant", "content": "Yes?"}, *ASK]
    assert render_chat(tokenizer, several) == (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nYes?\n\n### Instruction:\nHi\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("<think>\n", "<think>\n\n</think>\n\n"),
        ("<think>", "<think>\n\n</think>\n\n"),
        ("<seed:think>", "<seed:think>\n\n</seed:think>\n\n"),
        ("[THINK]", "[THINK]\n\n[/THINK]\n\n"),
        ("<think></think>", "<think></think>"),
        ("{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}", "<think>\n\n</think>\n\n"),
        ("", ""),
    ],
)
def test_without_thinking_a_thought_that_the_template_opens_is_closed(end, expected):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += end.replace("<think>\n", "<think>{{ '\\n' }}")
    assert render_chat(tokenizer, ASK) == f"<|user|>Hi<|end|><|assistant|>{expected}"
    if "{%" not in end and "/" not in end:
        assert render_chat(tokenizer, ASK, thinking=True).endswith(end)
        assert render_chat(tokenizer, ASK, generation_prompt=False).rstrip().endswith(end.rstrip())


def test_named_templates_are_found_by_their_name():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "d{{ messages[0].content }}", "rag": "r{{ messages[0].content }}"}
    assert render_chat(tokenizer, ASK) == "dHi"
    assert render_chat(tokenizer, ASK, template="rag") == "rHi"
    tokenizer.chat_template = {"rag": "r"}
    with pytest.raises(ValueError, match="no such chat template") as error:
        render_chat(tokenizer, ASK)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("turns", [[], [{"role": "user"}], [{"role": "user", "content": None}], ["Hi"]])
def test_a_chat_without_turns_or_texts_is_refused(turns):
    with pytest.raises(ValueError, match=r"a turn of a chat must have|a chat must have at least one turn"):
        render_chat(tiny_tokenizer(), turns)


ENVIRONMENT = {"filters": {**Environment().filters}, "undefined": StrictUndefined}


def test_a_text_of_a_task_is_made_once_of_the_same_and_anew_of_what_differs(monkeypatch):
    template = templates.LimitedTemplate("{{ x }} {{ y | length }}", **ENVIRONMENT)
    made = []

    def limited(*args):
        made.append(args[1]["x"])
        return original(*args)

    original = templates._limited
    monkeypatch.setattr(templates, "_limited", limited)
    for _ in range(3):
        texts = [template.render(x=x, y=["a"]) for x in (1, 1.0, True, "1", None, [1], [1.0])]
        assert texts == ["1 1", "1.0 1", "True 1", "1 1", "None 1", "[1] 1", "[1.0] 1"]
    assert len(made) == 7
    doc = {"x": "same", "y": ["a"]}
    assert template.render(**doc) == "same 1"
    doc["y"].append("b")  # the same list with more in it
    assert template.render(**doc) == "same 2"


def test_what_has_chance_in_it_or_is_no_plain_value_is_made_anew():
    numbers = [*range(1000)]
    chance = templates.LimitedTemplate("{{ x | random }}", **ENVIRONMENT)
    assert len({chance.render(x=numbers) for _ in range(5)}) > 1
    plain = templates.LimitedTemplate("{{ x.value }}", **ENVIRONMENT)
    thing = SimpleNamespace(value=1)
    assert plain.render(x=thing) == "1"
    thing.value = 2
    assert plain.render(x=thing) == "2"


def test_few_texts_are_kept_and_no_long_ones(monkeypatch):
    monkeypatch.setattr(templates, "_KEPT", 3)
    template = templates.LimitedTemplate("{{ x }}", **ENVIRONMENT)
    for k in [*range(5), "long " * 1000]:
        assert template.render(x=k) == str(k)
    assert [*template._kept.values()] == ["2", "3", "4"]
