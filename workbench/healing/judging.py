"""Which rewrites are kept, why the others are not, and the closing line that they share with references."""

from __future__ import annotations

import re
from typing import Any

from workbench.data.answers import final_answer, without_calculator_marks
from workbench.data.quantities import same_answer
from workbench.places import toml_beside

KEPT_ANSWER, KEPT_OPEN = "same final answer", "passes the quality rules"
KEPT_SAME = "same text as the reference"
_TEXTS = toml_beside(__file__, "rewriting")
LEAKS: tuple[str, ...] = tuple(_TEXTS["leaks"])
_PART = {part: f"(?:{'|'.join(words)})" for part, words in _TEXTS["refusal"].items()}
_REFUSAL = re.compile(r"{begin}\s*{middle}\s+{not}\s+{do}\b".format(**_PART))
_CLOSING = re.compile(r"(?:^|\s)####[ \t]*([^\n#]+?)\s*$")  # of a reference as in GSM8K
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{(?s:.){1,300}$")  # near the end, as in MATH
_STATES = re.compile(
    r"\W*(?:####|(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final )?answer\b).{1,60}", re.I
)


def judge(row: dict[str, Any], leaks: tuple[str, ...] = LEAKS) -> tuple[bool, str]:
    """Say whether a rewrite is kept, and why (SDD 2.2, conditional selection).

    A row with an answer keeps the rewrite when its final answer is the same (SDD). In every row (**ours** for
    maths) it must not be empty or truncated, show the prompt, refuse to answer, repeat itself, or give a bare
    answer where the reference works it out. One that is the reference word for word is kept, with a reason of
    its own, so that it can be counted.

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
    if not row["finished"]:
        return False, "cut off"
    if not re.search(r"\w", rewrite):
        return False, "says nothing" if rewrite.strip() else "empty"
    if row["answer"]:
        answer = final_answer(rewrite)
        if answer is None:
            return False, "no final answer"
        if not same_answer(answer, row["answer"]):
            return False, "another final answer"
    if flaw := _flaw(row, leaks):
        return False, flaw
    if _bare_text(rewrite) == _bare_text(row["reference"]):
        return True, KEPT_SAME
    return True, KEPT_ANSWER if row["answer"] else KEPT_OPEN


def closing_words(reference: str) -> str:
    """Return how a rewrite is asked to end: as the reference does.

    >>> closing_words("2+2=4 #### 4"), closing_words("It is 4.")
    ('####', 'The answer is')
    """
    boxed = r"\boxed{...}" if _BOXED.search(reference) else "The answer is"
    return "####" if _CLOSING.search(reference) else boxed


def with_closing(rewrite: str, row: dict[str, Any]) -> str:
    """Return a rewrite with the closing line of its reference, in place of one "the answer is ...".

    Returned as it is where the reference ends neither "#### n" nor in a box, or the final answer is another.

    >>> row = {"reference": "2+2=4 #### 4", "answer": "4"}
    >>> with_closing("Two and two.\\nThe answer is 4.", row)
    'Two and two.\\n#### 4'
    """
    closing = _closing_line(row, rewrite)
    if closing is None or not same_answer(final_answer(rewrite), row["answer"]):
        return rewrite
    body, _, last = rewrite.rpartition("\n")
    states = body.strip() and _STATES.fullmatch(last) and same_answer(final_answer(last), row["answer"])
    return f"{(body if states else rewrite).rstrip()}\n{closing}"


def _closing_line(row: dict[str, Any], rewrite: str) -> str | None:
    """Return the line that ends as the reference does; None where there is none, or the rewrite has it."""
    if closing := _CLOSING.search(row["reference"]):
        return f"#### {closing[1]}"
    missing = _BOXED.search(row["reference"]) and not _BOXED.search(rewrite)
    return f"The answer is $\\boxed{{{row['answer']}}}$." if missing else None


def _flaw(row: dict[str, Any], leaks: tuple[str, ...]) -> str | None:
    """Return what is wrong with a rewrite apart from its answer; None where nothing is."""
    said = row["rewrite"].lower().replace("’", "'")
    own = f"{row['instruction']} {row['context']} {row['reference']}".lower().replace("’", "'")
    if any(phrase in said and phrase not in own for phrase in leaks):
        return "shows the prompt"
    if _REFUSAL.match(said.lstrip(' *"')) and not _REFUSAL.search(own):
        return "refuses to answer"
    if _repetition(said) > max(0.5, _repetition(row["reference"])):
        return "repeats itself"
    short = len(said.split()) <= 6 and not re.search(r"\d\s*[-+*/=×÷]", said)
    return "no reasoning" if row["answer"] and short and len(row["reference"].split()) >= 12 else None


def _bare_text(text: str) -> str:
    return " ".join(without_calculator_marks(text).split())


def _repetition(text: str) -> float:
    """Return the share of 4-grams that occurred before: of words, or of characters where spaces are few."""
    words = text.lower().split()
    if len(text) > 15 * len(words):  # Chinese, or one letter over and over
        words = list("".join(words))
    grams = list(zip(*(words[k:] for k in range(4)), strict=False))
    return 1 - len(set(grams)) / len(grams) if len(grams) >= 4 else 0.0
