"""Columns that a task's prompt shows: an empty one is refused where it would be read as "None"."""

from __future__ import annotations

import pytest
from scoring import CHOICE, rows, write_jsonl

from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.tasks import load_tasks


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{% if hint %}{{hint}} {% endif %}{{question}}", False),
        ("{{hint or 'None'}} {{question}}", False),
        ("{{hint}} {{question}}", True),
        ("{{hint | string}}: {{question}}", True),
    ],
)
def test_an_empty_column_is_refused_only_where_a_prompt_shows_it(model, tokenizer, tmp_path, text, shown):
    entries = [{**row, "hint": None if k % 2 else "think"} for k, row in enumerate(rows(6, seed=3))]
    entries[1]["question"] += " None of it"
    write_jsonl(tmp_path / "q.jsonl", entries)
    task = CHOICE.format(name="", data="q.jsonl").replace("{{question}}", text)
    (tmp_path / "choice.yaml").write_text(task, encoding="utf-8")
    if shown:
        with pytest.raises(ValueError, match="column 'hint' is empty, first in item 1"):
            load_tasks(["toy_choice"], include=tmp_path)
    else:
        frame = evaluate(model, tokenizer, "toy_choice", include=tmp_path, progress=False)
        assert list(frame["n"]) == [6, 6]


def test_a_gap_inside_a_list_of_choices_is_refused(tmp_path):
    entries = rows(4, seed=3)
    entries[2]["choices"][1] = None
    write_jsonl(tmp_path / "q.jsonl", entries)
    (tmp_path / "choice.yaml").write_text(CHOICE.format(name="", data="q.jsonl"), encoding="utf-8")
    with pytest.raises(ValueError, match="column 'choices' is empty, first in item 2"):
        load_tasks(["toy_choice"], include=tmp_path)
