"""Self-data distillation: the model rewrites each reference, and only good rewrites are kept.

SDD 2.2: the *unpruned* model sees instruction, context and reference and answers in its own words (its own
distribution); a rewrite that does not pass the check falls back to the reference. The pruned model then
heals on the ``response`` column.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.checks import check_writable, checked, told
from workbench.data.answers import without_thoughts
from workbench.data.instructions import EXTRAS, FIELDS, conversation, field_text
from workbench.data.texts import fingerprint
from workbench.generation import responses
from workbench.generation.prompts import chat_prompt, context_length
from workbench.generation.responses import Response
from workbench.healing.adapters import adapted_modules
from workbench.healing.judging import LEAKS, closing_words, judge, with_closing
from workbench.models.chat import chat_ids, render_chat
from workbench.models.layers import layer_container, unwrap
from workbench.models.processes import by_the_first
from workbench.places import toml_beside
from workbench.runs.journal import Journal
from workbench.runs.keys import reads

TEMPLATE_FILE = "distillation_template.json"
_TEXTS = toml_beside(__file__, "rewriting")
Rule = Callable[[dict[str, Any]], "bool | tuple[bool, str]"]


@dataclass(frozen=True)
class RewriteTemplate:
    """What the model is asked when it rewrites a reference; read it, replace it.

    ``{instruction}``, ``{context}`` and ``{reference}`` are filled in. A line with ``{context}`` is left out
    where there is none; a template without one gets the line ``Context: ...`` before its line with
    ``{instruction}``. ``{closing}`` becomes how the reference ends: ``####``, ``\\boxed{...}``, else ``The
    answer is``; with it in ``math``, a kept rewrite is given the closing line of its reference (see
    ``self_distill``).

    Attributes:
        math: for rows with a final answer.
        open: for all others.
        leaks: phrases (lower case) that show the prompt in a response, unless the row itself has them.
    """

    math: str = _TEXTS["math"]
    open: str = _TEXTS["open"]
    leaks: tuple[str, ...] = LEAKS

    def __post_init__(self) -> None:
        """Refuse what is no text before a model is asked."""
        leaks = self.leaks if isinstance(self.leaks, tuple | list) else [None]
        if not all(isinstance(text, str) for text in (self.math, self.open, *leaks)):
            raise ValueError(f"math and open must be texts, leaks a tuple of texts, got {self!r:.200}")


def template_asked(model: Any, template: RewriteTemplate | None = None) -> dict[str, Any]:
    """Return the template that an argument ``template`` stands for, for its key in a run."""
    return {"template": template or rewrite_template(model)}


@reads(template_asked, instead_of=("template",))
def self_distill(
    model: Any,
    tokenizer: Any,
    examples: pd.DataFrame,
    *,
    out: str | Path | None = None,
    rule: str | Rule = "auto",
    template: RewriteTemplate | None = None,
    max_new_tokens: int = 256,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    engine: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
    any_model: bool = False,
) -> pd.DataFrame:
    """Let the model rewrite the reference of every example, and keep the rewrites that pass (SDD 2.2).

    Rows whose prompt does not fit the context keep their reference. Nothing is generated twice: the rule may
    change between runs over the same ``out``, and with a greater ``max_new_tokens`` only what was cut off is
    rewritten again. Thoughts (``<think>``) are taken off a rewrite; one cut off in its thoughts is cut off.

    **Ours**: where references end "#### n" and the template asks for that (``{closing}``), the response of a
    kept rewrite that ends otherwise gets the line "#### n" of its reference, in place of a closing "The
    answer is n"; where they end in a box, as in MATH, one without gets "The answer is $\\boxed{n}$.". So both
    columns, references and responses, teach the form that the evaluation reads.

    Args:
        model: the whole model, before layers are removed.
        tokenizer: its tokenizer.
        examples: frame with id, instruction, context, reference, answer (see ``load_instructions``).
        out: journal that rewrites are added to batch by batch. A run that was killed goes on from it and
            ends with the frame of an uninterrupted one. It belongs to one model, tokenizer, template, data
            set and generation setting: with another it is refused, never mixed (but for a greater
            ``max_new_tokens``).
        rule: ``"auto"``: rows with an answer are kept when the rewrite's final answer equals it, others by
            quality rules (see ``judge``). Or a function of a row (id, instruction, context, reference,
            answer, rewrite, finished) that returns whether to keep it, or that and a reason.
        template: what the model is asked; None for the model's own (``rewrite_template``).
        max_new_tokens: longest rewrite; a longer one is truncated, with the reason ``cut off``.
        batch_size: prompts a batch.
        temperature: 0 for greedy.
        seed: of the sampling.
        engine: what runs the model, see ``generate_responses``.
        overwrite: begin ``out`` again when it belongs to another model, template or data set.
        progress: show a progress bar.
        any_model: also let a model rewrite that lacks layers or has an adapter on.

    Returns:
        Frame with id, instruction, context, reference, answer, history and form where the examples have
        them, rewrite, kept, reason, response, in the order of the examples; ``response`` is the rewrite where
        kept (with the reference's closing line, see above), else the reference. ``attrs["closing"]``: how
        many responses were given such a line.

    Raises:
        ValueError: for no examples, missing columns, fields that are no texts, ids that are not unique, a
            pruned or adapted model, a rule that fails, no prompt that fits the context, an ``out`` of other
            work.
    """
    checked(examples, FIELDS, "examples", unique="id")
    template = template or rewrite_template(model)
    texts = [name for name in (*FIELDS, *EXTRAS) if name in examples and name != "id"]
    told = examples.to_dict("records")
    rows = [{"id": row["id"]} | {name: field_text(row, name) for name in texts} for row in told]
    verdict = _checked_rule(rule, rows[0], template)
    if not any_model:
        _check_whole(model)
    asked = [
        [*conversation(row)[:-1], {"role": "user", "content": rewrite_message(template, row)}] for row in rows
    ]
    ids = [chat_ids(tokenizer, turns) for turns in asked]
    fits = _that_fit(model, ids, max_new_tokens)
    work = {
        "template": fingerprint([template.math, template.open, chat_prompt(tokenizer, "{message}")]),
        "data": fingerprint(pd.DataFrame(rows)),
    }
    generation = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    if out is not None:
        header = responses.journal_header(model, tokenizer, work, generation)
        by_the_first(partial(_carry_over, Path(out), header, partial(_that_fit, model, ids)))
    options = {"batch_size": batch_size, "progress": progress, "engine": engine, "overwrite": overwrite}
    chosen = [ids[k] for k in fits]
    found = responses.journaled_responses(model, tokenizer, chosen, out, work, **options, **generation)
    rewrites = {k: _said(one, render_chat(tokenizer, asked[k])) for k, one in zip(fits, found, strict=True)}
    return _judged(rows, rewrites, verdict, template)


def rewrite_template(model: Any = None) -> RewriteTemplate:
    """Return a model's own template (``distillation_template.json`` in its folder), else the general one.

    The file holds ``{"math": ..., "open": ...}``, either or both.

    Raises:
        ValueError: for a file that holds no such texts.
    """
    base = None if model is None else unwrap(model)
    folder = "" if base is None else getattr(base, "_source", {}).get("folder") or base.config._name_or_path
    path = Path(folder) / TEMPLATE_FILE
    if not folder or not path.is_file():
        return RewriteTemplate()
    with told(f"{path} holds no templates", ValueError, TypeError, AttributeError):
        own = json.loads(path.read_text(encoding="utf-8"))
        texts = {name: own[name] for name in ("math", "open") if name in own}
        if not all(isinstance(text, str) for text in texts.values()):
            raise TypeError("they must be texts")
    return RewriteTemplate(**texts)


def rewrite_message(template: RewriteTemplate, row: dict[str, Any]) -> str:
    """Return what the user says to have one row rewritten: the template filled in.

    Raises:
        ValueError: for a template without ``{instruction}`` or ``{reference}``, a row without an instruction,
            a field that is no text.

    >>> template = RewriteTemplate(math="Q: {instruction} A: {reference}")
    >>> rewrite_message(template, {"instruction": "2+2?", "context": "", "reference": "4", "answer": "4"})
    'Q: 2+2? A: 4'
    """
    row = {name: field_text(row, name) for name in ("instruction", "context", "reference", "answer")}
    if not row["instruction"]:
        raise ValueError(f"instruction must hold a text, the row has {sorted(row)}")
    text = template.math if row["answer"] else template.open
    if missing := [name for name in ("{instruction}", "{reference}") if name not in text]:
        raise ValueError(f"template must contain {' and '.join(missing)}, got {text!r}")
    if "{context}" not in text:
        text = re.sub(r"(?m)^(?=.*\{instruction\})", "Context: {context}\n", text, count=1)
    if not row["context"]:
        text = "\n".join(line for line in text.split("\n") if "{context}" not in line)
    values = row | {"closing": closing_words(row["reference"])}
    # in one pass, so that braces inside the data stay what they are
    return re.sub(r"\{(instruction|context|reference|closing)\}", lambda match: values[match.group(1)], text)


def kept_shares(distilled: pd.DataFrame) -> pd.DataFrame:
    """Return how many rewrites were kept or refused for which reason.

    Args:
        distilled: frame of ``self_distill``.

    Returns:
        Frame with reason, kept, n, share (0..1 of all rows), the commonest first.

    >>> rows = pd.DataFrame({"reason": ["empty", "even", "even"], "kept": [False, True, True]})
    >>> kept_shares(rows)[["reason", "kept", "n"]].to_numpy().tolist()
    [['even', True, 2], ['empty', False, 1]]
    """
    counts = distilled.value_counts(["reason", "kept"]).reset_index(name="n")
    counts["share"] = counts["n"] / len(distilled)
    return counts.sort_values(["n", "reason"], ascending=[False, True], ignore_index=True)


def _checked_rule(rule: str | Rule, row: dict[str, Any], template: RewriteTemplate) -> Rule:
    """Return the rule as a function, tried on one row before anything is generated."""
    if rule == "auto":
        return partial(judge, leaks=template.leaks)
    if not callable(rule):
        raise ValueError(f"rule must be 'auto' or a function of a row, got {rule!r}")
    _verdict(rule, row | {"rewrite": row["reference"], "finished": True})
    return rule


def _verdict(rule: Rule, row: dict[str, Any]) -> tuple[bool, str]:
    """Return whether a rule keeps a row, and why."""
    with told(f"rule fails on row {row['id']!r}", Exception):
        verdict = rule(dict(row))
    if not isinstance(verdict, tuple):
        return bool(verdict), "kept by the rule" if verdict else "refused by the rule"
    if len(verdict) != 2:
        raise ValueError(f"rule must return whether to keep a row, or that and a reason, got {verdict!r}")
    return bool(verdict[0]), str(verdict[1])


def _check_whole(model: Any) -> None:
    lacks = getattr(layer_container(model)[0].config, "kept_layers", None) is not None
    if lacks or adapted_modules(model):
        got = "it lacks layers" if lacks else "it has one"
        raise ValueError(f"model must be whole, without an adapter (SDD 2.2), {got}; or give any_model=True")


def _carry_over(out: Path, header: dict[str, Any], fits: Callable[[int], list[int]]) -> None:
    """Keep the finished rows of a journal that differs in nothing but a smaller ``max_new_tokens``.

    ``fits`` gives the rows that fit with so many new tokens; a journal numbers those alone.
    """
    if not out.is_file():  # asked by the first process alone: another may see what that one makes
        return
    with out.open("rb") as file:
        first = file.readline()
    now, generation = json.loads(json.dumps(header)), header["generation"]
    longest = generation["max_new_tokens"]
    try:
        old = json.loads(first)["journal"]
        before = old["generation"]["max_new_tokens"]
        if before >= longest or old != now | {"generation": generation | {"max_new_tokens": before}}:
            return
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # no journal of this kind: said where it is opened
    new = {row: place for place, row in enumerate(fits(longest))}
    moved = {place: new[row] for place, row in enumerate(fits(before)) if row in new}
    if generation["temperature"]:  # a row is sampled by its place
        moved = {place: to for place, to in moved.items() if place == to}
    rows = [one for one in Journal(out, old).rows() if one["finished"] and one["prompt_index"] in moved]
    finished = [one | {"prompt_index": moved[one["prompt_index"]]} for one in rows]
    check_writable("out", out)
    longer = out.with_name(f".{out.name}.longer")
    longer.unlink(missing_ok=True)
    Journal(longer, now).append(finished)
    os.replace(longer, out)


def _that_fit(model: Any, ids: list[list[int]], max_new_tokens: int) -> list[int]:
    """Return the rows whose prompt and response fit the context."""
    context = context_length(model)
    fits = [k for k, row in enumerate(ids) if context is None or len(row) + max_new_tokens <= context]
    if not fits:
        fit = f"the context of {context} tokens with max_new_tokens={max_new_tokens}"
        raise ValueError(f"no prompt fits {fit}: the shortest has {min(map(len, ids))} tokens")
    return fits


def _said(one: Response, prompt: str) -> dict[str, Any]:
    """Return rewrite and finished of a response: without thoughts, unfinished where it never left them."""
    text = f"<think>{one.response}" if prompt.rstrip().endswith("<think>") else one.response
    thinks = "<think" in text.rpartition("</think")[2]
    return {"rewrite": without_thoughts(text).strip(), "finished": one.finished and not thinks}


def _judged(
    rows: list[dict[str, Any]], said: dict[int, dict[str, Any]], rule: Rule, template: RewriteTemplate
) -> pd.DataFrame:
    judged, closed = [], 0
    for place, row in enumerate(rows):
        row = row | said.get(place, {"rewrite": ""})
        kept, reason = _verdict(rule, row) if place in said else (False, "prompt too long")
        response = row["rewrite"] if kept else row["reference"]
        if kept and row["answer"] and "{closing}" in template.math:
            response = with_closing(response, row)
            closed += response != row["rewrite"]
        judged.append(row | {"kept": kept, "reason": reason, "response": response})
    frame = pd.DataFrame(judged, columns=[*rows[0], "rewrite", "kept", "reason", "response"])
    frame.attrs["closing"] = closed
    if not frame["kept"].any():
        reasons = ", ".join(f"{reason} ({n})" for reason, n in frame["reason"].value_counts().items())
        told = f"every one of {len(frame)} rewrites was refused: {reasons}"
        warnings.warn(f"{told}; healing on the references is plain fine-tuning", stacklevel=3)
    return frame
