"""Work shared among processes: fair shares, the same in each, and what one gives or suffers reaches all."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest

from workbench.models import processes
from workbench.models.processes import by_the_first, everyones, place, shares, wait


def test_alone_everything_is_done_here(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert place() == (0, 1)
    assert everyones({"a": 1}) == [{"a": 1}]
    assert by_the_first(lambda: "done") == "done"
    assert shares([3, 1, 2]) == [0, 0, 0]
    wait()
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


def test_jobs_of_a_group_stay_together_where_their_beginning_is_dear(monkeypatch):
    monkeypatch.setattr(processes, "place", lambda: (0, 2))
    costs, groups = [1.0] * 6, ["a", "a", "b", "b", "a", "b"]
    together = shares(costs, groups, [100.0] * 6)
    assert len({(group, owner) for group, owner in zip(groups, together, strict=True)}) == 2
    apart = shares(costs, groups, [0.0] * 6)
    assert apart == shares(costs) and loads(apart, costs, 2) == [3, 3]


WORK = """
import json, sys
from pathlib import Path
from workbench.models.processes import by_the_first, everyones, place, shares, wait
number, n = place()
said = {"place": [number, n], "all": everyones(number * 10), "shares": shares([3, 2, 1])}
said["first"] = by_the_first(lambda: f"of {number}")
try:
    by_the_first(lambda: [][number])
except IndexError as error:
    said["error"] = str(error)
wait()
Path(sys.argv[1], f"{number}.json").write_text(json.dumps(said))
"""


@pytest.mark.slow
def test_two_processes_see_the_same(tmp_path, root):
    script = tmp_path / "work.py"
    script.write_text(WORK)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {"PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert [one.pop("place") for one in told] == [[0, 2], [1, 2]]
    assert told[0] == told[1]
    assert told[0] == {
        "all": [0, 10],
        "shares": [0, 1, 1],
        "first": "of 0",
        "error": "list index out of range",
    }
