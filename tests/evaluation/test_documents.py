"""What a task's items are read from: the rows that the harness would read, and no other process's."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import datasets
import pytest
from lm_eval.api.task import ConfigurableTask

from workbench.evaluation import documents
from workbench.evaluation.documents import own_rows

ROWS = [
    {
        "question": f"How many are {k}?",
        "endings": ["few", "many", str(k)][: 1 + k % 3],
        "label": k % 2,
        "parts": [{"name": f"p{k}", "at": k}] * (k % 3),
        "about": {"subject": "numbers", "level": None if k % 4 else k},
        "score": k / 7 if k % 5 else None,
    }
    for k in range(23)
]


class Task(ConfigurableTask):
    """A real task of the harness, whose items are given."""

    def __init__(self, docs):
        self.docs, self._config = docs, SimpleNamespace(task="numbers")

    @property
    def eval_docs(self):
        return self.docs


@pytest.fixture
def few_at_once(monkeypatch):
    monkeypatch.setattr(documents, "_ROWS", 4)


def plain():
    return datasets.Dataset.from_list(ROWS)


def labelled():
    features = plain().features.copy()
    features["label"] = datasets.ClassLabel(names=["even", "odd"])
    return datasets.Dataset.from_list(ROWS, features=features)


def chosen():
    return plain().select([3, 1, 20, 7, 7, 15, 0, 2, 11])


SETS = {"plain": plain, "labelled": labelled, "chosen": chosen, "empty": lambda: plain().select([])}


@pytest.mark.parametrize("name", SETS)
def test_rows_are_those_that_the_harness_reads(name, few_at_once):
    task = Task(SETS[name]())
    for limit, world in product((None, 1, 5, 8, 100), (1, 2, 3)):
        for rank in range(world):
            asked = {"rank": rank, "limit": limit, "world_size": world}
            assert list(own_rows(task)(**asked)) == list(task.doc_iterator(**asked)), asked


def test_every_row_is_a_new_one():
    read = own_rows(Task(plain()))
    for _, row in read(rank=0, limit=None, world_size=1):
        row["question"] = row["endings"] = None
    assert [row for _, row in read(rank=0, limit=None, world_size=1)] == list(plain())


def test_rows_of_other_processes_are_never_read(few_at_once, monkeypatch):
    task, read = Task(plain()), []
    get = datasets.Dataset.__getitem__

    def counted(docs, key):
        columns = get(docs, key)
        read.extend(columns["label"] if isinstance(columns, dict) else [columns])
        return columns

    monkeypatch.setattr(datasets.Dataset, "__getitem__", counted)
    monkeypatch.setattr(datasets.Dataset, "__iter__", lambda docs: pytest.fail("all rows were read"))
    assert len(list(own_rows(task)(rank=1, limit=20, world_size=3))) == 7 == len(read)


@pytest.mark.parametrize("way", ["list", "format", "samples", "own"])
def test_what_is_no_plain_set_is_left_to_the_harness(way):
    asked = {"rank": 0, "limit": 9, "world_size": 2, "samples": [5, 2, 9] if way == "samples" else None}
    task = Task({"list": ROWS, "format": plain().with_format("numpy")}.get(way, plain()))
    if way == "own":

        class Backwards(Task):
            def doc_iterator(self, **settings):
                return iter([*super().doc_iterator(**settings)][::-1])

        task.__class__ = Backwards
    found, wanted = (list(read(**asked)) for read in (own_rows(task), task.doc_iterator))
    assert repr(found) == repr(wanted) and len(found) > 1


@pytest.mark.parametrize("name", ["hellaswag", "mmlu_anatomy", "race", "arc_easy", "blimp_adjunct_island"])
def test_rows_of_public_sets_are_those_that_the_harness_reads(name, shared_data):
    from workbench.evaluation.tasks import load_tasks

    (task,) = load_tasks([name], data=shared_data)["tasks"].values()
    asked = {"rank": 1, "limit": None, "world_size": 2}
    found = list(own_rows(task)(**asked))
    assert found == list(task.doc_iterator(**asked)) and len(found) > 10
