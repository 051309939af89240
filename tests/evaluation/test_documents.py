"""What a task's items are read from: the rows that the harness would read, and no other process's."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import datasets
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.api.task import Task as HarnessTask
from scoring import rows, write_jsonl
from tiny import tiny_model

from workbench.evaluation import documents, harness
from workbench.evaluation.documents import own_rows
from workbench.evaluation.evaluate import evaluate, prepared
from workbench.evaluation.sharing import build_own

SHOTS = """
task: shot
dataset_path: json
dataset_kwargs: {data_files: {test: PLACE/rows.jsonl}}
output_type: multiple_choice
test_split: test
fewshot_split: test
fewshot_config: {sampler: SAMPLER}
num_fewshot: 2
doc_to_text: "{{question}}"
doc_to_target: 0
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
"""

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
    for limit, world in product((None, 0, 1, 5, 8, 100), (1, 2, 3)):
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


@pytest.mark.parametrize("way", ["list", "format", "columns", "samples", "own", "put"])
def test_what_is_no_plain_set_is_left_to_the_harness(way):
    asked = {"rank": 0, "limit": 9, "world_size": 2, "samples": [5, 2, 9] if way == "samples" else None}
    sets = {"list": ROWS, "format": plain().with_format("numpy")}
    sets["columns"] = plain().with_format(None, columns=[])  # of which every row is empty
    task = Task(sets.get(way, plain()))
    if way == "own":

        class Backwards(Task):
            def doc_iterator(self, **settings):
                return iter([*super().doc_iterator(**settings)][::-1])

        task.__class__ = Backwards
    if way == "put":
        every = task.doc_iterator
        task.doc_iterator = lambda **settings: list(every(**settings))[2:]
    found, wanted = (list(read(**asked)) for read in (own_rows(task), task.doc_iterator))
    assert repr(found) == repr(wanted) and len(found) > 1


def test_a_way_that_somebody_puts_in_place_of_the_harness_s_is_taken(monkeypatch):
    every = HarnessTask.doc_iterator
    monkeypatch.setattr(
        HarnessTask, "doc_iterator", lambda task, **settings: list(every(task, **settings))[2:]
    )
    task = Task(plain())
    asked = {"rank": 0, "limit": None, "world_size": 1}
    assert list(own_rows(task)(**asked)) == list(enumerate(ROWS))[2:]


def test_an_evaluation_reads_no_row_by_itself(tokenizer, folder, monkeypatch):
    run, iterate, read = harness.run_harness, datasets.Dataset.__iter__, []

    def running(*args, **settings):
        with monkeypatch.context() as during:
            during.setattr(datasets.Dataset, "__iter__", lambda docs: (read.append(1), iterate(docs))[1])
            return run(*args, **settings)

    monkeypatch.setattr(harness, "run_harness", running)
    evaluate(tiny_model("llama"), tokenizer, "toy_choice", include=folder, limit=5, progress=False)
    assert read == []


@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_examples_of_other_processes_items_are_drawn_only_where_chance_draws_them(sampler, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", rows(9, seed=3))
    (tmp_path / "shot.yaml").write_text(SHOTS.replace("SAMPLER", sampler).replace("PLACE", str(tmp_path)))
    (task,) = (
        prepared({None: ["shot"]}, include=tmp_path, data=None, missing="error").tasks[None]["tasks"].values()
    )
    drawn, sample = [], task.sampler.sample
    task.sampler.sample = lambda *args, **settings: drawn.append(1) or sample(*args, **settings)
    build_own(task)
    task.build_all_requests(rank=1, world_size=3)
    assert len({one.doc_id for one in task.instances}) == 3
    assert len(drawn) == {"default": 8, "first_n": 3}[sampler]


@pytest.mark.parametrize("name", ["hellaswag", "mmlu_anatomy", "race", "arc_easy", "blimp_adjunct_island"])
def test_rows_of_public_sets_are_those_that_the_harness_reads(name, shared_data):
    from workbench.evaluation.tasks import load_tasks

    (task,) = load_tasks([name], data=shared_data)["tasks"].values()
    asked = {"rank": 1, "limit": None, "world_size": 2}
    found = list(own_rows(task)(**asked))
    assert found == list(task.doc_iterator(**asked)) and len(found) > 10
