"""Two processes of a launcher give the scores, items and responses of one, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from scoring import rows, write_jsonl

pytestmark = pytest.mark.slow

WORK = """
import json, os, sys, time, warnings
sys.path[:0] = {paths!r}
from pathlib import Path
import pandas as pd
import torch
torch.set_num_threads(1)
from healed import make_examples
from tiny import tiny_model, tiny_tokenizer
from workbench.evaluation import launching, sharing
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.in_memory import InMemory
from workbench.evaluation.variants import evaluate_variants
from workbench.generation.responses import generate_responses
from workbench.healing.distillation import self_distill
from workbench.models.processes import place
from workbench.runs.run import Run
from workbench.runs.variant import Variant

here = Path({here!r})
rank = os.environ.get("RANK", "0")
model, tokenizer = tiny_model("llama", max_position_embeddings=512), tiny_tokenizer()
tasks = ["toy_sums", "toy_choices", "toy_texts"]
settings = {{"include": {folder!r}, "progress": False, "batch_size": 3, "limit": 8}}
scores = evaluate(model, tokenizer, tasks, items=here / "items.jsonl", **settings)
few = evaluate(model, tokenizer, tasks, items=here / "few.jsonl", **settings | {{"limit": 1}})
before = sharing._FIRST, sharing._MOST
sharing._FIRST, sharing._MOST = 2, 3  # tasks are answered while they and others are built
launching.worth_a_thread = lambda device: place()[1] > 1  # by a thread, as on GPUs, where there are two
asked = settings | {{"n_shot": 2, "limit": 7, "max_length": 40}}
drawn = evaluate(model, tokenizer, ["toy_sums", "toy_choices"], items=here / "drawn.jsonl", **asked)
asked = settings | {{"include": {coded!r}, "allow_code": True}}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a resample can hold one label alone
    coded = evaluate(model, tokenizer, ["coded", "labels", "gaps"], items=here / "coded.jsonl", **asked)
    guessed = evaluate(model, tokenizer, "guessed", **asked)
    lucky = evaluate(model, tokenizer, "lucky", items=here / "lucky.jsonl", **asked)
    counted = evaluate(model, tokenizer, "counted", items=here / "counted.jsonl", **asked)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    exchanged, kept_by = [], InMemory.gather_object
    InMemory.gather_object = lambda lm, found, dst=0: exchanged.append(kept_by(lm, found)) or exchanged[-1]
    asked |= {{"n_shot": 1}}
    strange = evaluate(model, tokenizer, "strange", items=here / "strange.jsonl", **asked)
    evaluate(model, tokenizer, "strange", **asked)
    InMemory.gather_object = kept_by
    asked.pop("n_shot")
of_targets = [str(one.message) for one in warned if "none of their choices" in str(one.message)]
of_targets = pd.DataFrame({{"warned": of_targets}}).to_json()
(here / f"warned-{{rank}}.json").write_text(of_targets)
(here / f"exchanged-{{rank}}.json").write_text(json.dumps([str(one) for one in exchanged]))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    told = []
    for name in ("question", "score", "average"):
        try:
            evaluate(model, tokenizer, f"wrong_{{name}}", **asked)
        except Exception as error:
            told.append(f"{{type(error).__name__}}: {{error}}")
        again = evaluate(model, tokenizer, "coded", **asked)
        pd.testing.assert_frame_equal(again, coded[coded["task"] == "coded"])
    # one process fails while it reads, or while it has read for longer than the other what is asked ahead
    pairs = InMemory._pairs
    def slow(lm, requests):
        time.sleep(0.5 * int(rank))
        return pairs(lm, requests)
    def failing(lm, requests):
        if place()[0] == place()[1] - 1:
            raise LookupError("not read")
        return pairs(lm, requests)
    both = (pairs, ["wrong_question", "wrong_first"])  # the other, and then this one while it reads
    for reads, names in ((slow, ["coded", "wrong_question"]), (failing, ["coded", "labels"]), both):
        InMemory._pairs = reads
        try:
            evaluate(model, tokenizer, names, **asked)
        except Exception as error:
            told.append(f"{{type(error).__name__}}: {{error}}")
        InMemory._pairs = pairs
        again = evaluate(model, tokenizer, "coded", **asked)
        pd.testing.assert_frame_equal(again, coded[coded["task"] == "coded"])
    failed = pd.DataFrame({{"told": told}})
sharing._FIRST, sharing._MOST = before
run = Run("r", here / "r")
variants = [Variant("base", "tiny"), Variant("pruned", "tiny", removed=(2,))]
kept = [evaluate_variants(model, tokenizer, variants, "toy_choices", run=run, **settings) for _ in range(2)]
prompts = ["Anna has " + "12 apples " * k for k in range(1, 14)]
said = [
    generate_responses(model, tokenizer, prompts, max_new_tokens=9, batch_size=4, progress=False, seed=5,
                       temperature=t, out=here / f"said-{{t}}.jsonl")
    for t in (0.0, 0.8)
]
time.sleep(int(rank))  # the second comes when the first may have made the file
rewritten = self_distill(model, tokenizer, make_examples(9).assign(answer=""), out=here / "rewritten.jsonl",
                         batch_size=3, max_new_tokens=8, progress=False, rule=lambda row: True)
assert os.environ.get("WORLD_SIZE", "1") == str(place()[1])
frames = {{"scores": scores, "rewritten": rewritten, "greedy": said[0], "sampled": said[1]}}
frames |= {{"guessed": guessed, "failed": failed, "few": few, "drawn": drawn, "coded": coded}}
frames |= {{"strange": strange, "lucky": lucky, "counted": counted}}
frames |= {{"kept": kept[0].scores, "again": kept[1].scores, "items": kept[0].items}}
for name, frame in frames.items():
    frame.to_json(here / f"{{name}}-{{rank}}.json", double_precision=15)
"""


CODED = """
task: coded
dataset_path: json
dataset_kwargs: {data_files: {test: PLACE/test.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: !function questions.question
doc_to_target: label
doc_to_choice: "{{choices}}"
process_results: !function scores.measured
metric_list:
  - {metric: right, aggregation: mean, higher_is_better: true}
  - {metric: odd, aggregation: mean, higher_is_better: true}
"""
QUESTIONS = """
import random
def question(doc):
    return f"{doc['question']} {random.choice(['and', 'to', 'by', 'over'])}"
def guessed(doc, answers):
    return {"right": random.random(), "odd": 1.0}
"""
SCORES = """
def measured(doc, answers):
    values = [value for value, _ in answers]
    found = {"right": float(values.index(max(values)) == doc["label"])}
    return found | ({"odd": max(values)} if doc["number"] % 2 else {})
"""
#: what a person's own task may be wrong in: a question, a score, or the average of all
WRONG = {
    "question": ('doc_to_text: "{{1 // (5 - number)}}"', "measured", "mean"),
    "first": ('doc_to_text: "{{1 // (4 - number)}}"', "measured", "mean"),
    "score": ('doc_to_text: "{{question}}"', "failing", "mean"),
    "average": ('doc_to_text: "{{question}}"', "measured", "!function scores.lost"),
}
FAILING = """
def numbered(doc, answers):
    return {"line": doc["number"], "strange": 2.0}
def failing(doc, answers):
    return {"right": 1.0, "odd": 1.0} if doc["number"] != 5 else {}["no score"]
def lost(values):
    raise ArithmeticError("no average")
"""
LABELS = """
task: labels
dataset_path: json
dataset_kwargs: {data_files: {test: PLACE/test.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{number % 2}}"
doc_to_choice: "{{choices[:2]}}"
metric_list: [{metric: acc}, {metric: f1}, {metric: mcc}]
"""

#: averages by chance, and one that knows how often it was asked; scores by names that others use as well
LUCKY = CODED.replace("task: coded", "task: lucky").replace("scores.measured", "scores.numbered")
LUCKY = LUCKY.replace(
    "metric: right, aggregation: mean", "metric: line, aggregation: !function averages.lucky"
)
LUCKY = LUCKY.replace("metric: odd,", "metric: strange,")
COUNTED = (
    LUCKY.replace("task: lucky", "task: counted").replace("averages.", "counts.").replace(".lucky", ".nth")
)
AVERAGES = """
import random
def lucky(values):
    return random.random() + sum(values)
"""
COUNTS = """
asked = []
def nth(values):
    asked.append(values)
    return float(len(asked))
"""
STRANGE = """
task: strange
dataset_path: json
dataset_kwargs: {data_files: {test: PLACE/test.jsonl}}
output_type: multiple_choice
test_split: test
fewshot_split: test
fewshot_config: {sampler: first_n}
doc_to_text: "Who reads this prompt? {{question}}"
doc_to_target: "{{number % 4}}"
doc_to_choice: "{{choices[:2]}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
GAPS = """
task: gaps
dataset_path: json
dataset_kwargs: {data_files: {test: PLACE/gaps.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
num_fewshot: 0
metric_list: [{metric: word_perplexity}]
"""


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """Tasks whose questions hang on chance, that measure every other item only, or all items at once."""
    place = tmp_path_factory.mktemp("coded")
    files = {"coded.yaml": CODED, "labels.yaml": LABELS, "questions.py": QUESTIONS}
    files |= {"lucky.yaml": LUCKY, "counted.yaml": COUNTED, "averages.py": AVERAGES, "counts.py": COUNTS}
    files |= {"scores.py": SCORES + FAILING, "gaps.yaml": GAPS, "strange.yaml": STRANGE}
    guessed = CODED.replace("scores.measured", "questions.guessed")
    files["guessed.yaml"] = guessed.replace("task: coded", "task: guessed")
    for name, (question, score, average) in WRONG.items():
        wrong = CODED.replace("doc_to_text: !function questions.question", question)
        wrong = wrong.replace("scores.measured", f"scores.{score}")
        wrong = wrong.replace("aggregation: mean", f"aggregation: {average}")
        files[f"{name}.yaml"] = wrong.replace("task: coded", f"task: wrong_{name}")
    for name, text in files.items():
        (place / name).write_text(text.replace("PLACE", str(place)))
    entries = [row | {"number": k} for k, row in enumerate(rows(9, seed=3))]
    write_jsonl(place / "test.jsonl", entries)
    write_jsonl(
        place / "gaps.jsonl", [row | {"text": "" if row["number"] % 2 else row["text"]} for row in entries]
    )
    return place


@pytest.fixture(scope="module")
def results(tmp_path_factory, root, folder, coded):
    """What one process, which is this one, and two write, by number of processes."""
    found = {}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    free = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env = {**free, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for n in (1, 2):
        found[n] = here = tmp_path_factory.mktemp(f"processes{n}")
        paths = [str(root / "tests"), str(root / "tests" / "healing"), str(root)]
        work = WORK.format(paths=paths, here=str(here), folder=str(folder), coded=str(coded))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [*sys.path])
            patch.chdir(folder.parents[1])
            if n == 1:
                exec(work, {})
                continue
            (here / "work.py").write_text(work, encoding="utf-8")
            done = subprocess.run([*launcher, str(here / "work.py")], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return found


FRAMES = ["scores", "few", "drawn", "coded", "guessed", "failed", "kept", "again", "items"]
FRAMES += ["greedy", "sampled", "rewritten", "strange", "lucky", "counted"]


@pytest.mark.parametrize("name", FRAMES)
def test_two_processes_give_what_one_gives(results, name):
    one = (results[1] / f"{name}-0.json").read_text()
    assert len(pd.read_json(results[1] / f"{name}-0.json"))
    for rank in (0, 1):
        assert (results[2] / f"{name}-{rank}.json").read_text() == one


def test_the_journal_holds_every_row_and_no_part_is_left(results):
    for name in ("said-0.0.jsonl", "said-0.8.jsonl", "rewritten.jsonl"):
        rows = {}
        for n in (1, 2):
            _, *lines = map(json.loads, (results[n] / name).read_text().splitlines())
            rows[n] = sorted(lines, key=lambda row: row["prompt_index"])
        assert rows[1] == rows[2]
    assert not [path for path in results[2].iterdir() if ".part-" in path.name]


@pytest.mark.parametrize("name", ["items", "few", "drawn", "coded", "strange", "lucky"])
def test_items_are_those_of_one_process_in_its_order(results, name):
    one = (results[1] / f"{name}.jsonl").read_bytes()
    assert one
    assert (results[2] / f"{name}.jsonl").read_bytes() == one


def test_targets_that_are_no_choices_are_told_by_the_first_process_as_by_one(results):
    one = (results[1] / "warned-0.json").read_text()
    assert "of 8 items is none of their choices" in one
    assert (results[2] / "warned-0.json").read_text() == one


def test_processes_exchange_scores_but_no_prompts(results):
    with_items, _, without, _ = json.loads((results[2] / "exchanged-1.json").read_text())
    assert with_items == without and with_items.count("'acc_norm': ") == 8
    assert "reads this prompt" not in without and "'arguments'" not in with_items


def test_the_tasks_ask_what_a_split_could_get_wrong(results):
    drawn = pd.read_json(results[1] / "drawn-0.json")
    assert (drawn["n_shot"] == 2).all()
    assert drawn["truncated"].sum() > 0
    coded = pd.read_json(results[1] / "coded-0.json").set_index(["task", "metric"])
    assert {"right", "odd"} == {metric for task, metric in coded.index if task == "coded"}
    assert coded.loc[("labels", "f1"), "stderr"] > 0
    prompts = [json.loads(line)["prompt"] for line in (results[1] / "coded.jsonl").read_text().splitlines()]
    assert len({prompt.split()[-1] for prompt in prompts[:8]}) > 1
    assert len(pd.read_json(results[1] / "failed-0.json")) == 6
