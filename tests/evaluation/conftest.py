"""A project with toy tasks, a tiny model, and its scores on them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from scoring import CHOICE, GENERATE, GROUP, TASKS, TEXTS, rows, write_jsonl
from tiny import tiny_model, tiny_tokenizer

from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.items import read_items


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A project with a task folder, whose data paths are relative to the project's root."""
    root = tmp_path_factory.mktemp("project")
    folder = root / "toys" / "tasks"
    folder.mkdir(parents=True)
    for name, text in {
        "sums": GENERATE,
        "choice": CHOICE.format(name="", data="toys/tasks/test.jsonl"),
        "again": CHOICE.format(name="_again", data="toys/tasks/test.jsonl"),
        "texts": TEXTS,
        "group": GROUP,
    }.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    write_jsonl(folder / "train.jsonl", rows(9, seed=1))
    write_jsonl(folder / "test.jsonl", rows(13, seed=2))
    return root


@pytest.fixture(scope="session")
def folder(project) -> Path:
    return project / "toys" / "tasks"


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def scored(model, tokenizer, folder, tmp_path_factory) -> tuple[pd.DataFrame, pd.DataFrame]:
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    frame = evaluate(
        model, tokenizer, TASKS, n_shot=None, include=folder, items=path, batch_size=4, progress=False
    )
    return frame, read_items(path)


@pytest.fixture(scope="session")
def saved(model, tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
