"""Write the shipped files: texts, instruction sets and tasks. `python data/demo/build.py`; the same bytes every time."""

from __future__ import annotations

import json
import random
import sys
from itertools import islice
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from generator import documents as docs  # noqa: E402
from generator import german, grammar, problems  # noqa: E402
from generator.world import World  # noqa: E402

TEXT_SEED, TASK_SEED, TUNING_SEED = 101, 202, 303
CORPORA = {
    "stories": ("stories",),
    "encyclopedia": ("encyclopedia",),
    "dialogues": ("facts", "choice", "yes_no", "reading", "problems"),
    "german": ("german_stories", "german_encyclopedia"),
}


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def texts(kinds: tuple[str, ...], n: int, seed: int = TEXT_SEED) -> list[str]:
    """`n` different documents that training never sees."""
    found: dict[str, None] = {}
    for text in docs.documents(seed, kinds, held=True):
        found.setdefault(text)
        if len(found) == n:
            return list(found)
    raise AssertionError("the generator is endless")


def math_instructions(n: int) -> list[dict]:
    """Word problems with terse references, from the tuning split."""
    rng, rows = random.Random(TUNING_SEED), {}
    while len(rows) < n:
        p = problems.problem(rng, "tuning")
        rows.setdefault(p.question, p)
    return [
        {"id": f"math-{i}", "instruction": q, "context": "", "reference": p.terse, "answer": str(p.answer)}
        for i, (q, p) in enumerate(rows.items())
    ]


def open_instructions(n: int) -> list[dict]:
    """Questions on facts and on passages, with terse references."""
    rng, world, rows = random.Random(TUNING_SEED + 1), World(), {}
    while len(rows) < n:
        if rng.random() < 0.5:
            fact = rng.choice(world.facts)
            context, question, reference = "", docs.training_question(rng, fact), fact.terse
        else:
            context, question, answer, reference = docs.reading_parts(rng, world)
            if not docs.held_out(docs.chat(f"{context}\n{question}", answer)):
                continue
        rows.setdefault((context, question), reference)
    return [
        {"id": f"open-{i}", "instruction": question, "context": context, "reference": reference, "answer": ""}
        for i, ((context, question), reference) in enumerate(rows.items())
    ]


def math_test_problems(n: int) -> list[problems.Problem]:
    """Held-out word problems, no two with the same numbers."""
    rng, found = random.Random(TASK_SEED), {}
    while len(found) < n:
        p = problems.problem(rng, "test")
        found.setdefault(p.skeleton, p)
    return list(found.values())


def math_task(n: int) -> list[dict]:
    """Held-out word problems, as a task."""
    return [
        {"question": p.question, "solution": p.solution, "answer": str(p.answer)}
        for p in math_test_problems(n)
    ]


def math_test_instructions(n: int) -> list[dict]:
    """The same problems as an instruction set, to compare responses on."""
    return [
        {
            "id": f"math-test-{i}",
            "instruction": p.question,
            "context": "",
            "reference": p.terse,
            "answer": str(p.answer),
        }
        for i, p in enumerate(math_test_problems(n))
    ]


def fact_task(n: int) -> list[dict]:
    """Facts, asked in the wording that training never used for them."""
    facts = random.Random(TASK_SEED).sample(World().facts, n)
    return [
        {"question": f.ask(f.held_out_question), "reply": f.answer, "value": f.value, "relation": f.relation}
        for f in facts
    ]


def choice_task(n: int) -> list[dict]:
    """Four-way questions in held-out wordings; every choice is a full reply."""
    rng, world, rows = random.Random(TASK_SEED + 1), World(), []
    for fact in rng.sample(world.facts, n):
        prompt, replies, right = docs.choice_parts(rng, world, fact, fact.ask(fact.held_out_question))
        rows.append({"question": prompt, "choices": replies, "label": right, "relation": fact.relation})
    return rows


def yes_no_task(n: int) -> list[dict]:
    """Held-out passages with a yes/no question, as many of one answer as of the other."""
    rng, world, rows = random.Random(TASK_SEED + 2), World(), []
    for answer in ("Yes.", "No."):
        while len([r for r in rows if r["answer"] == answer]) < n // 2:
            text, question, found = docs.yes_no_parts(rng, world)
            if found == answer and docs.held_out(docs.chat(f"{text}\n{question}", answer)):
                rows.append({"passage": text, "question": question, "answer": answer})
    rng.shuffle(rows)
    return rows


def pair_task(phenomena: dict, n: int, seed: int, opening: str) -> list[dict]:
    """`n` held-out minimal pairs of each phenomenon, each after the first sentence of a story.

    The opening is the same for both of a pair: in this world such sentences never begin a text, so that without it a
    pair would mostly measure which word tends to begin one.
    """
    rows = []
    for name, make in phenomena.items():
        rng, found = random.Random(f"{seed} {name}"), {}
        while len(found) < n:
            good, bad = make(rng)
            if docs.held_out(good):
                found.setdefault(good, bad)
        rows += [
            {"context": opening, "good": good, "bad": bad, "phenomenon": name} for good, bad in found.items()
        ]
    random.Random(seed).shuffle(rows)
    return rows


def german_fact_task(n: int) -> list[dict]:
    """Facts asked in German that training states in German but never asks for in it."""
    facts = [f for f in World().facts if f.german and docs.german_question_held_out(f)]
    chosen = random.Random(TASK_SEED + 3).sample(facts, n)
    return [
        {"question": f.german[1], "reply": f.german[0], "value": f.value, "relation": f.relation}
        for f in chosen
    ]


def main() -> None:
    """Write everything."""
    for name, kinds in CORPORA.items():
        write_rows(HERE / "texts" / f"{name}.jsonl", [{"text": t} for t in texts(kinds, 400)])
    write_rows(HERE / "instructions" / "math.jsonl", math_instructions(2000))
    write_rows(HERE / "instructions" / "open.jsonl", open_instructions(1000))
    write_rows(HERE / "instructions" / "math-test.jsonl", math_test_instructions(400))
    tasks = {
        "math": math_task(400),
        "facts": fact_task(400),
        "choice": choice_task(300),
        "yes_no": yes_no_task(300),
        "pairs": pair_task(grammar.PHENOMENA, 60, TASK_SEED, "One winter Selma could not sleep."),
        "stories": [{"text": t} for t in texts(("stories",), 150, TASK_SEED + 4)],
        "german_pairs": pair_task(german.PHENOMENA, 60, TASK_SEED, "Es war einmal Selma."),
        "german_facts": german_fact_task(80),
    }
    for name, rows in tasks.items():
        write_rows(HERE / "tasks" / f"{name}.jsonl", rows)
    sample = list(islice(docs.documents(1), 12))
    (HERE / "sample.txt").write_text("\n\n".join(sample) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
