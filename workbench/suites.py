"""Which benchmarks the papers report, as data: their suites, categories, and public sets saved as jsonl."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Suite:
    """A paper's tasks and groups with their n_shot (None: the task's own), its source, its context length."""

    tasks: tuple[tuple[str, int | None], ...]
    source: str
    max_length: int | None = None


_ITERABRE = (
    "arc_challenge",
    "arc_easy",
    "hellaswag",
    "copa",
    "piqa",
    "blimp",
    "race",
    "winogrande",
    "boolq",
    "mmlu",
    "wikitext",
)

#: The papers' suites. ``evaluate(model, tokenizer, "sdd")`` runs one.
SUITES: dict[str, Suite] = {
    "sdd": Suite((("arc_challenge", 25), ("gsm8k", 5), ("mmlu", 5)), "SDD table 8"),
    "openllm-v1": Suite(
        (
            ("arc_challenge", 25),
            ("hellaswag", 10),
            ("mmlu", 5),
            ("truthfulqa_mc2", 0),
            ("winogrande", 5),
            ("gsm8k", 5),
        ),
        "SDD 4, OpenLLM Leaderboard v1",
    ),
    "gro": Suite((("mmlu", 0), ("mmlu", 5), ("boolq", 0)), "GRO figures 2 and 7"),
    "iterabre": Suite(tuple((name, 0) for name in _ITERABRE), "ITR table 1", max_length=1024),
    "iterabre-multilingual": Suite(
        (("xwinograd", 0), ("xstorycloze", 0), ("xnli", 0)), "ITR table 2", max_length=1024
    ),
}


#: What a task asks for, as ITR groups its benchmarks; a task file may say it itself (``metadata: category``).
CATEGORIES = {
    **dict.fromkeys(("arc_challenge", "arc_easy", "hellaswag", "copa", "piqa", "gsm8k"), "reasoning"),
    **dict.fromkeys(("blimp", "race", "winogrande", "wikitext"), "language"),
    **dict.fromkeys(("boolq", "mmlu", "truthfulqa_mc2"), "knowledge"),
    **dict.fromkeys(("xwinograd", "xstorycloze", "xnli"), "multilingual"),
}


@dataclass(frozen=True)
class LocalSet:
    """A public set saved as jsonl: packaged task file, file of each split, entries that must differ."""

    task_file: str
    splits: dict[str, str]
    overrides: dict[str, Any] = field(default_factory=dict)


_ARC_SPLITS = ("train", "validation", "test")
_NO_TRAIN = {
    "training_split": None,
    "num_fewshot": 0,
}  # without its own train split there is no official few-shot

#: Packaged tasks that also run, prompt and filters unchanged, on jsonl files of the set's usual columns.
LOCAL_SETS: dict[str, LocalSet] = {
    "gsm8k": LocalSet("gsm8k/gsm8k.yaml", {"train": "gsm8k_train.jsonl", "test": "gsm8k_test.jsonl"}),
    "arc_easy": LocalSet("arc/arc_easy.yaml", {s: f"arc_easy_{s}.jsonl" for s in _ARC_SPLITS}),
    "arc_challenge": LocalSet("arc/arc_challenge.yaml", {s: f"arc_challenge_{s}.jsonl" for s in _ARC_SPLITS}),
    # The set as its authors published it names the label ``answer`` (true or false); the hub's copy,
    # ``label`` (1 or 0).
    "boolq": LocalSet(
        "super_glue/boolq/default.yaml",
        {"validation": "boolq_validation.jsonl"},
        _NO_TRAIN | {"doc_to_target": "{{answer|int}}"},
    ),
    "hellaswag": LocalSet("hellaswag/hellaswag.yaml", {"validation": "hellaswag.jsonl"}, _NO_TRAIN),
    "piqa": LocalSet("piqa/piqa.yaml", {"validation": "piqa_validation.jsonl"}, _NO_TRAIN),
    "copa": LocalSet("super_glue/copa/default.yaml", {"validation": "copa_validation.jsonl"}, _NO_TRAIN),
    "winogrande": LocalSet(
        "winogrande/default.yaml", {"validation": "winogrande_xl_validation.jsonl"}, _NO_TRAIN
    ),
}
