"""Work shared among processes: fair shares, the same in each, and what one gives or suffers reaches all."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.models import processes
from workbench.models.processes import by_the_first, everyones, place, shares


def test_alone_everything_is_done_here(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert place() == (0, 1)
    assert everyones({"a": 1}) == [{"a": 1}]
    assert by_the_first(lambda: "done") == "done"
    assert shares([3, 1, 2]) == [0, 0, 0]
    everyones(None)
    with pytest.raises(KeyError, match="lost"):
        by_the_first(lambda: {}["lost"])


def loads(owners: list[int], costs: list[float], n: int) -> list[float]:
    return [sum(cost for owner, cost in zip(owners, costs, strict=True) if owner == k) for k in range(n)]


@pytest.mark.parametrize("costs", [[5, 4, 3, 3, 3], [9, 1, 1, 1, 1], [2, 2, 2, 2], [7], []], ids=str)
def test_the_longest_takes_at_most_a_third_more_than_it_must(costs, monkeypatch):
    n = 2
    monkeypatch.setattr(processes, "place", lambda: (1, n))
    found = max(loads(shares(costs), costs, n))
    best = min(max(loads([*some], costs, n)) for some in itertools.product(range(n), repeat=len(costs)))
    assert found <= 4 / 3 * best
    monkeypatch.setattr(processes, "place", lambda: (0, n))
    assert max(loads(shares(costs), costs, n)) == found


def longest(owners, costs: list[float], groups: list[str], extra: list[float]) -> float:
    """Return what the busiest of two processes does: its jobs, and each group's beginning once."""
    found = []
    for k in range(2):
        mine = [job for job, owner in enumerate(owners) if owner == k]
        begun = {groups[job]: extra[job] for job in mine}
        found.append(sum(costs[job] for job in mine) + sum(begun.values()))
    return max(found)


def test_what_the_jobs_of_a_group_share_is_counted_once_a_process(monkeypatch):
    monkeypatch.setattr(processes, "place", lambda: (0, 2))
    costs, groups = [4.0, 4.0, 3.0, 3.0, 2.0, 2.0], ["a", "b", "a", "b", "a", "b"]
    for dear in (0.0, 1.0, 5.0):
        extra = [dear] * 6
        found = longest(shares(costs, groups, extra), costs, groups, extra)
        assert found == min(
            longest(some, costs, groups, extra) for some in itertools.product(range(2), repeat=6)
        )
    # the last job goes where its group has begun, though the other process has less to do
    assert shares([3.0, 1.0, 1.0], ["a", "b", "a"], [5.0] * 3) == [0, 1, 0]
    assert shares([3.0, 1.0, 1.0]) == [0, 1, 1]


def test_what_shares_much_stays_together_and_one_large_group_is_split(monkeypatch):
    monkeypatch.setattr(processes, "place", lambda: (0, 2))
    groups = [name for name in "abcdef" for _ in range(3)]
    costs, extra = [1.0] * 18, [4.0] * 18
    owners = shares(costs, groups, extra)
    assert all(len({*owners[k : k + 3]}) == 1 for k in range(0, 18, 3))  # each beginning is read once
    assert longest(owners, costs, groups, extra) == 21
    assert longest(shares([1.0] * 6, ["a"] * 6, [1.0] * 6), [1.0] * 6, ["a"] * 6, [1.0] * 6) == 4
    assert shares([], [], []) == []


@pytest.mark.parametrize(
    "left", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "x"}, {"RANK": "1"}]
)
def test_what_a_launcher_left_behind_is_no_launcher(left, monkeypatch):
    for name in processes._LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert place() == (0, 1) and everyones("mine") == ["mine"]
    with processes.without_leftovers():
        assert not {*left} & {*os.environ}
    assert left.items() <= os.environ.items()


def test_a_variable_of_a_launcher_that_is_no_number_is_named(monkeypatch):
    for name in processes._LAUNCHER:
        monkeypatch.setenv(name, "1")
    with processes.without_leftovers():
        assert processes.world_size() == 1 and os.environ["RANK"] == "1"
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match=r"WORLD_SIZE, a variable of a launcher, must be .*, got 'two'"):
        place()


DIFFERENT = """
import json, sys
from pathlib import Path
from healed import make_examples
from tiny import tiny_model, tiny_tokenizer
from workbench.evaluation.evaluate import evaluate
from workbench.generation.responses import generate_responses
from workbench.healing.config import HealingConfig
from workbench.healing.heal import heal
from workbench.models.processes import place
number, _ = place()
here, said, tokenizer = Path(sys.argv[1]), [], tiny_tokenizer()
model, texts = tiny_model(num_hidden_layers=2), ["by the river", "the dog"]
quick = {"max_new_tokens": 2, "progress": False}
one, config = (HealingConfig(max_steps=n, batch_size=2, rank=2) for n in (1, 1 + number))
def other(seed):
    return tiny_model(num_hidden_layers=2, seed=seed)
def trained(**options):
    return heal(model, tokenizer, make_examples(4), out=here / "out", progress=False, **options)
for work in (
    lambda: generate_responses(model, tokenizer, [text + " and" * number for text in texts], **quick),
    lambda: generate_responses(other(number), tokenizer, texts, **quick),
    lambda: evaluate(model, tokenizer, "demo_choice", limit=2 + number, progress=False),
    lambda: evaluate(other(number), tokenizer, "demo_choice", limit=2, progress=False),
    lambda: trained(config=config),
    lambda: trained(response=["reference", "response"][number], config=one),
    lambda: generate_responses(other(3), tokenizer, texts, **quick | {"progress": number == 0}),
):
    try:
        work()
        said.append("done")
    except ValueError as error:
        said.append(str(error).partition("must be given the same arguments, got ")[2])
(here / f"{number}.json").write_text(json.dumps(said))
"""


@pytest.mark.slow
def test_processes_that_are_given_different_arguments_are_told_so(tmp_path, root):
    (tmp_path / "work.py").write_text(DIFFERENT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = [str(root), str(root / "tests"), str(root / "tests" / "healing")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(tmp_path / "work.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert told[0] == told[1]
    assert [one.partition(": ")[0] for one in told[0][:2]] == ["prompts", "model"]
    assert told[0][2] == "limit: 2, 3"
    assert told[0][3].startswith("model: ") and told[0][4] == "max_steps: 1, 2"
    assert told[0][5].startswith("data: ") and told[0][6] == "done"


READERS = "RAYON_NUM_THREADS"
WORK = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from tiny import tiny_tokenizer
from workbench.models import processes
from workbench.models.processes import by_the_first, everyones, failing_together, place, shares
number, n = place()
threads = lambda: len([*Path("/proc/self/task").glob("*")])
before = threads()
tiny_tokenizer()(["Anna has 12 apples"] * 200)
readers = threads() - before
said = {"readers": readers, "place": [number, n], "all": everyones(number * 10), "shares": shares([3, 2, 1])}
said["first"] = by_the_first(lambda: f"of {number}")
try:
    by_the_first(lambda: [][number])
except IndexError as error:
    said["error"] = str(error)
class Odd(Exception):
    def __init__(self, one, two):  # cannot be made again from its text
        super().__init__(f"{one} {two}")
said["failed"] = []
lost, odd, all_of_them = ValueError("lost"), Odd("very", "odd"), KeyError("all")
for failing, error in ((1, lost), (0, odd), (None, all_of_them)):
    try:
        with failing_together():
            if failing in (number, None):
                raise error
            everyones("never comes")
    except Exception as error:
        said["failed"].append([str(error).removeprefix("Odd: "), everyones("in step")])
# as where GPUs exchange by NCCL: objects go another way
dist.get_backend = lambda: "nccl"
processes._without_gpus.cache_clear()
said["by_cpu"] = [everyones(number), processes._without_gpus(dist.group.WORLD) is not None]
# what is asked after an exchange was left without its end would get what belongs to that
def stop(*_, **__):
    raise KeyboardInterrupt
dist.all_gather_object = stop
for _ in range(2):
    try:
        everyones("interrupted")
    except (KeyboardInterrupt, RuntimeError) as error:
        said.setdefault("refused", []).append(str(error))
Path(sys.argv[1], f"{number}.json").write_text(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.parametrize("asked", [None, 3])
def test_two_processes_see_the_same(asked, tmp_path, root):
    script = tmp_path / "work.py"
    script.write_text(WORK)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {k: v for k, v in os.environ.items() if k not in ("TOKENIZERS_PARALLELISM", READERS)}
    environment |= {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]), "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true"} | ({READERS: str(asked)} if asked else {})
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert [one.pop("place") for one in told] == [[0, 2], [1, 2]]
    assert told[0] == told[1]
    if Path("/proc/self/task").is_dir():
        cores = len(os.sched_getaffinity(0))
        assert told[0]["readers"] == (asked or max(1, cores // 4)), "threads that read texts"
    assert told[0] | {"readers": 0} == {
        "readers": 0,
        "all": [0, 10],
        "shares": [0, 1, 1],
        "first": "of 0",
        "error": "list index out of range",
        "by_cpu": [[0, 1], True],
        "refused": ["", "an exchange between the processes was interrupted; start all of them anew"],
        "failed": [[text, ["in step"] * 2] for text in ("lost", "very odd", "'all'")],
    }
