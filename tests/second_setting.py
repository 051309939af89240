"""Another world than the demo's: a tiny model of another family and depth, data by path, equal items."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import tiny_model, tiny_tokenizer

LAYERS = 6
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
num_fewshot: 0
doc_to_text: "<|user|>{{{{question}}}}<|end|><|assistant|>"
target_delimiter: ""
metadata: {{version: 1.0, category: {category}}}
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
SUM = """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<|end|>"], do_sample: false, max_gen_toks: 12}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@dataclass
class World:
    """Where it lies, and the values for the notebooks' parameters as they are typed in its folder."""

    folder: Path
    home: Path
    settings: list[str]


def make_world(folder: Path) -> World:
    """Write the model and its data below a folder: some beside it, some in a home folder."""
    home, tasks = folder / "home", folder / "own tasks"
    for place in (home, tasks, folder / "data"):
        place.mkdir()
    model = tiny_model("gpt-neox", num_hidden_layers=LAYERS, max_position_embeddings=512)
    model.save_pretrained(folder / "tiny-neox")
    tiny_tokenizer().save_pretrained(folder / "tiny-neox")
    texts = [
        {"text": f"Anna has {k} apples and {k % 3} pears. The fox jumps {k} times over it."}
        for k in range(40)
    ]
    _jsonl(folder / "data" / "my texts.jsonl", texts + texts[:10])  # some occur twice
    _jsonl(folder / "beside.jsonl", [{"text": one["text"].replace("fox", "dog")} for one in texts])
    (home / "at_home.txt").write_text("\n".join(one["text"].upper() for one in texts))
    asked = [
        (f"Anna has {k} apples and gets {k % 4}. How many apples has she?", k + k % 4) for k in range(30)
    ]
    rows = [{"instruction": question, "response": f"The answer is {total}."} for question, total in asked]
    _jsonl(folder / "data" / "sums.jsonl", rows)
    others = [{**row, "instruction": row["instruction"].replace("Anna", "Ben")} for row in rows]
    _jsonl(folder / "data" / "other sums.jsonl", others)  # that no notebook learns
    same = [
        {"question": "How many?", "choices": ["one", "two"], "label": 0, "answer": "1"}
    ] * 4  # equal items
    items = [{"question": q, "choices": ["7", "8"], "label": n % 2, "answer": str(n)} for q, n in asked[:4]]
    for name, kind, category in (("own_choice", CHOICE, "knowledge"), ("own_sum", SUM, "reasoning")):
        _jsonl(tasks / f"{name}.jsonl", same + items)
        head = TASK.format(name=name, data=json.dumps(str(tasks / f"{name}.jsonl")), category=category)
        (tasks / f"{name}.yaml").write_text(head + kind)
    return World(folder, home, [f"{name}={value!r}" for name, value in _values(folder).items()])


def _values(folder: Path) -> dict[str, Any]:
    """Return the parameters; data by path: in lists, with labels, absolute, relative, from the home."""
    whole = str(folder / "data" / "my texts.jsonl")
    both, task = ["own_choice", "own_sum"], ["own_choice"]
    return {
        "model_name": "./tiny-neox",
        "01.n_texts": 12,
        "02.n_texts": 12,
        "01.n_damage_texts": 4,
        "02.n_damage_texts": 4,
        "01.max_length": 64,
        "01.n_points": 2,
        "01.sizes": [2, 4],
        "01.calibration_sets": [whole, "beside.jsonl", "~/at_home.txt"],
        "02.block_size": 2,
        "02.calibration_sets": [whole],
        "02.max_length": 64,
        "02.prompt": "How many apples?",
        "03.instructions": "data/sums.jsonl",
        "03.n_examples": 20,
        "03.max_new_tokens": 12,
        "03.tasks": ["demo_choice"],
        "04.preset": "demo",
        "04.n_held_out": 4,
        "04.changes": {"rank": 2, "max_steps": 6},
        "04.grid": {"rank": [2, 4]},
        "04.grid_changes": {"max_steps": 3, "warmup_steps": 1},
        "05.tasks": both,
        "05.include": "./own tasks",
        "05.limit": 8,
        "05.loss_texts": {"Own": "data/my texts.jsonl"},
        "05.n_loss_texts": 4,
        "05.depth_sizes": [2, 4],
        "05.depth_tasks": task,
        "05.depth_limit": 8,
        "06.prompt_sets": ["data/other sums.jsonl"],
        "06.n_prompts": 6,
        "06.max_new_tokens": 12,
        "07.layers_left": 4,
        "07.calibration": whole,
        "07.recovery_texts": "data/my texts.jsonl",
        "07.n_recovery_texts": 8,
        "07.recovery_changes": {"rank": 2, "batch_size": 4, "max_length": 32, "max_steps": 2},
        "07.laco_grid": {"at_once": [2], "thresholds": [0.5], "intervals": [1]},
        "07.tasks": task,
        "07.include": "./own tasks",
        "07.limit": 4,
        "07.held_out": {"Own": "data/my texts.jsonl", "Beside": "beside.jsonl"},
        "07.n_measured": 2,
        "08.path": [0.5],
        "08.tasks": task,
        "08.include": "./own tasks",
        "08.limit": 8,
        "08.prompt_set": "data/other sums.jsonl",
        "08.n_prompts": 3,
        "08.max_new_tokens": 6,
        "09.prompt_sets": {"sums": "data/other sums.jsonl"},
        "09.n_prompts": 3,
        "09.max_new_tokens": 6,
        "09.block_sizes": [1, 2],
        "09.timed_prompts": 1,
        "09.timed_lengths": [1, 2],
    }


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


#: what is expected on stderr: what a random model says fails as a rewrite and is no text that the encoder
#: reads, and figures are not drawn as pictures; each with the line of code that warned
_TOLD = (
    *(
        "every one of 20 rewrites was refused",
        "of the pairs hold text that the encoder has no word pieces for",
    ),
    "No Chrome or Chromium was found, so png, pdf, svg could not be drawn",
)
_EXPECTED = re.compile(rf".*(?:{'|'.join(_TOLD)}).*\n(?:  .*\n)?")


def unexpected(outputs: list[Any]) -> list[Any]:
    """Return what should not be among outputs: errors, and what is on stderr unless it is expected."""
    told = [one for one in outputs if one["output_type"] == "error" or one.get("name") == "stderr"]
    return [one for one in told if _EXPECTED.sub("", "".join(one.get("text", "error"))).strip()]
