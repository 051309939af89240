"""Two processes of a launcher give the scores, items and responses of one, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

WORK = """
import json, os, sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
import pandas as pd
import torch
torch.set_num_threads(1)
from healed import make_examples
from tiny import tiny_model, tiny_tokenizer
from workbench.evaluation.evaluate import evaluate
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
frames |= {{"kept": kept[0].scores, "again": kept[1].scores, "items": kept[0].items}}
for name, frame in frames.items():
    frame.to_json(here / f"{{name}}-{{rank}}.json", double_precision=15)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory, root, folder):
    """What one process, which is this one, and two write, by number of processes."""
    found = {}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    free = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env = {**free, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for n in (1, 2):
        found[n] = here = tmp_path_factory.mktemp(f"processes{n}")
        paths = [str(root / "tests"), str(root / "tests" / "healing"), str(root)]
        work = WORK.format(paths=paths, here=str(here), folder=str(folder))
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


@pytest.mark.parametrize("name", ["scores", "kept", "again", "items", "greedy", "sampled", "rewritten"])
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
    assert (results[1] / "items.jsonl").read_bytes() == (results[2] / "items.jsonl").read_bytes()
