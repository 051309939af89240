"""Self-data distillation: the model rewrites each reference, and only good rewrites are kept.

SDD 2.2: the *unpruned* model sees instruction, context and reference and answers in its own words (its own
distribution); a rewrite that does not pass the check falls back to the reference. The pruned model then
heals on the ``response`` column.
"""

from __future__ import annotations

import json
import re
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.checks import checked
from workbench.data.answers import final_answer, same_answer
from workbench.data.instructions import FIELDS
from workbench.data.texts import fingerprint
from workbench.generation import responses
from workbench.generation.responses import Response, chat_prompt
from workbench.models.layers import unwrap

KEPT_ANSWER, KEPT_OPEN = "same final answer", "passes the quality rules"
TEMPLATE_FILE = "distillation_template.json"
_TEXTS = tomllib.loads(Path(__file__).with_name("rewriting.toml").read_text(encoding="utf-8"))
Rule = Callable[[dict[str, Any]], "bool | tuple[bool, str]"]


@dataclass(frozen=True)
class RewriteTemplate:
    """What the model is asked when it rewrites a reference; read it, replace it.

    ``{instruction}``, ``{context}`` and ``{reference}`` are filled in. A line with ``{context}`` is left
    out where there is none; a template without one gets the line ``Context: ...`` before its line with
    ``{instruction}``.

    Attributes:
        math: for rows with a final answer.
        open: for all others.
        leaks: phrases (lower case) that show the prompt in an open response, unless the row itself has them.
    """

    math: str = _TEXTS["math"]
    open: str = _TEXTS["open"]
    leaks: tuple[str, ...] = tuple(_TEXTS["leaks"])


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
) -> pd.DataFrame:
    """Let the model rewrite the reference of every example, and keep the rewrites that pass (SDD 2.2).

    Rows whose prompt does not fit the context keep their reference. Nothing that was generated is judged
    twice: the rule may change between runs over the same ``out``.

    Args:
        model: the whole model, before layers are removed.
        tokenizer: its tokenizer.
        examples: frame with id, instruction, context, reference, answer (see ``load_instructions``).
        out: journal that rewrites are added to batch by batch. A run that was killed goes on from it and
            ends with the frame of an uninterrupted one. It belongs to one model, template, data set and
            generation setting: with another it is refused, never mixed.
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

    Returns:
        Frame with id, instruction, context, reference, answer, rewrite, kept, reason, response, in the
        order of the examples; ``response`` is the rewrite where kept, else the reference.

    Raises:
        ValueError: for no examples, missing columns, ids that are not unique, no prompt that fits the
            context, an ``out`` of other work.
    """
    checked(examples, FIELDS, "examples", unique="id")
    if rule != "auto" and not callable(rule):
        raise ValueError(f"rule must be 'auto' or a function of a row, got {rule!r}")
    template = template or rewrite_template(model)
    rows = examples[FIELDS].to_dict("records")
    ids = responses.token_ids(
        tokenizer, [chat_prompt(tokenizer, rewrite_message(template, row)) for row in rows]
    )
    fits = _that_fit(model, ids, max_new_tokens)
    work = {
        "template": fingerprint([template.math, template.open, chat_prompt(tokenizer, "{message}")]),
        "data": fingerprint(examples[FIELDS].reset_index(drop=True)),
    }
    options = {"batch_size": batch_size, "progress": progress, "engine": engine, "overwrite": overwrite}
    options |= {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    rewrites = responses.journaled_responses(model, tokenizer, [ids[k] for k in fits], out, work, **options)
    verdict = partial(judge, leaks=template.leaks) if isinstance(rule, str) else rule
    return _judged(rows, dict(zip(fits, rewrites, strict=True)), verdict)


def rewrite_template(model: Any = None) -> RewriteTemplate:
    """Return a model's own template (``distillation_template.json`` in its folder), else the general one.

    The file holds ``{"math": ..., "open": ...}``, either or both.
    """
    folder = getattr(unwrap(model).config, "_name_or_path", "") if model is not None else ""
    path = Path(folder) / TEMPLATE_FILE
    if not folder or not path.is_file():
        return RewriteTemplate()
    own = json.loads(path.read_text(encoding="utf-8"))
    return RewriteTemplate(**{name: own[name] for name in ("math", "open") if name in own})


def rewrite_message(template: RewriteTemplate, row: dict[str, Any]) -> str:
    """Return what the user says to have one row rewritten: the template filled in.

    Raises:
        ValueError: for a template without ``{instruction}`` or ``{reference}``.

    >>> template = RewriteTemplate(math="Q: {instruction} A: {reference}")
    >>> rewrite_message(template, {"instruction": "2+2?", "context": "", "reference": "4", "answer": "4"})
    'Q: 2+2? A: 4'
    """
    text = template.math if row["answer"] else template.open
    if missing := [name for name in ("{instruction}", "{reference}") if name not in text]:
        raise ValueError(f"template must contain {' and '.join(missing)}, got {text!r}")
    if "{context}" not in text:
        text = re.sub(r"(?m)^(?=.*\{instruction\})", "Context: {context}\n", text, count=1)
    if not row["context"]:
        text = "\n".join(line for line in text.split("\n") if "{context}" not in line)
    # in one pass, so that braces inside the data stay what they are
    return re.sub(r"\{(instruction|context|reference)\}", lambda match: row[match.group(1)], text)


def judge(row: dict[str, Any], leaks: tuple[str, ...] = RewriteTemplate.leaks) -> tuple[bool, str]:
    """Say whether a rewrite is kept, and why (SDD 2.2, conditional selection).

    A row with an answer keeps the rewrite when its final answer is the same; any other when it does not
    show the prompt and does not repeat itself. In both cases it must not be empty or truncated (**ours**
    for maths).

    Args:
        row: instruction, context, reference, answer, rewrite, and finished (False when it was truncated).
        leaks: phrases (lower case) that show the prompt, unless the row's own texts have them.

    Returns:
        Whether it is kept, and the reason.

    >>> row = {"instruction": "2+2?", "context": "", "reference": "It is 4.", "answer": "4"}
    >>> judge(row | {"rewrite": "Two and two. The answer is 5.", "finished": True})
    (False, 'another final answer')
    """
    rewrite = row["rewrite"]
    if not rewrite.strip():
        return False, "empty"
    if not row["finished"]:
        return False, "cut off"
    if row["answer"]:
        answer = final_answer(rewrite)
        if answer is None:
            return False, "no final answer"
        return (True, KEPT_ANSWER) if same_answer(answer, row["answer"]) else (False, "another final answer")
    own = f"{row['instruction']} {row['context']} {row['reference']}".lower()
    if any(phrase in rewrite.lower() and phrase not in own for phrase in leaks):
        return False, "shows the prompt"
    if _repetition(rewrite) > max(0.5, _repetition(row["reference"])):
        return False, "repeats itself"
    return True, KEPT_OPEN


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
    counts = distilled.groupby(["reason", "kept"]).size().reset_index(name="n")
    counts = counts.assign(share=counts["n"] / len(distilled))
    return counts.sort_values(["n", "reason"], ascending=[False, True], ignore_index=True)


def _that_fit(model: Any, ids: list[list[int]], max_new_tokens: int) -> list[int]:
    """Return the rows whose prompt and response fit the context."""
    context = responses.context_length(model)
    fits = [k for k, row in enumerate(ids) if context is None or len(row) + max_new_tokens <= context]
    if not fits:
        raise ValueError(
            f"no prompt fits the context of {context} tokens with max_new_tokens={max_new_tokens}: "
            f"the shortest has {min(map(len, ids))} tokens; lower max_new_tokens or take shorter examples"
        )
    return fits


def _judged(rows: list[dict[str, Any]], found: dict[int, Response], rule: Rule) -> pd.DataFrame:
    frame = pd.DataFrame([row | _decided(row, found.get(place), rule) for place, row in enumerate(rows)])
    if not frame["kept"].any():
        reasons = ", ".join(f"{reason} ({n})" for reason, n in frame["reason"].value_counts().items())
        warnings.warn(
            f"every one of {len(frame)} rewrites was refused: {reasons}; each response is the reference, so "
            "healing on it is plain fine-tuning",
            stacklevel=3,
        )
    return frame


def _decided(row: dict[str, Any], one: Response | None, rule: Rule) -> dict[str, Any]:
    """Return rewrite, kept, reason and response of one row."""
    rewrite = one.response.strip() if one else ""
    verdict = (
        rule(row | {"rewrite": rewrite, "finished": one.finished}) if one else (False, "prompt too long")
    )
    if not isinstance(verdict, tuple):
        verdict = verdict, "kept by the rule" if verdict else "refused by the rule"
    response = rewrite if verdict[0] else row["reference"]
    return {"rewrite": rewrite, "kept": bool(verdict[0]), "reason": str(verdict[1]), "response": response}


def _repetition(text: str) -> float:
    """Return the share of word 4-grams that occurred before; 0 for short texts."""
    words = text.lower().split()
    grams = list(zip(*(words[k:] for k in range(4)), strict=False))
    return 1 - len(set(grams)) / len(grams) if len(grams) >= 12 else 0.0
