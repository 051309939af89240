"""Which benchmarks the papers report, as data: ``suites.toml``, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.places import toml_beside


@dataclass(frozen=True)
class Suite:
    """A paper's tasks and groups with their n_shot (None: the task's own), its source, its context length."""

    tasks: tuple[tuple[str, int | None], ...]
    source: str
    max_length: int | None = None


@dataclass(frozen=True)
class LocalSet:
    """A public set saved as jsonl, and the packaged tasks that read it, prompt and filters unchanged.

    Attributes:
        packaged: task file in the harness, or folder of task files that share the set (with their groups).
        files: jsonl file of each split. The last split is scored (``needed``); files of the others, which
            hold few-shot examples, may be missing.
        columns: what every row must have, by name.
        part: column that says which task of the folder a row belongs to; "" for a set of one task.
        form: how rows come to the form that the packaged task reads (``offline.FORMS``); "" as they are.
    """

    packaged: str
    files: dict[str, str]
    columns: str
    part: str = ""
    form: str = ""

    @property
    def needed(self) -> str:
        """The split that is scored."""
        return list(self.files)[-1]


def _suite(tasks: list[tuple[str, int | str]], **about: Any) -> Suite:
    return Suite(tuple((task, None if shots == "own" else int(shots)) for task, shots in tasks), **about)


_TABLES = toml_beside(__file__)

#: The papers' suites. ``evaluate(model, tokenizer, "sdd")`` runs one.
SUITES = {name: _suite(**entry) for name, entry in _TABLES["suites"].items()}
#: What a task asks for, as ITR groups its benchmarks: task -> category.
CATEGORIES = {task: category for category, tasks in _TABLES["categories"].items() for task in tasks}
#: Score of a uniform guess, of each task.
CHANCE: dict[str, float] = _TABLES["chance"]
#: The metric that papers report for a task.
HEADLINE: dict[str, str] = _TABLES["headline"]
#: Metrics that stand for a task without one in ``HEADLINE``: the first of these that it has.
PREFERRED: list[str] = _TABLES["preferred"]
#: Packaged tasks and groups that also run on jsonl files in the folder ``data``, without a network.
LOCAL_SETS = {name: LocalSet(**entry) for name, entry in _TABLES["local_sets"].items()}
#: ITR appendix C: the BLiMP paradigms of each of its 13 groups, without the prefix ``blimp_``.
BLIMP_GROUPS = {group: tuple(names) for group, names in _TABLES["blimp_groups"].items()}
#: tasks that the harness cannot import, as its own task files would state them
TASKS: dict[str, dict[str, Any]] = _TABLES["tasks"]
