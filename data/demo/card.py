"""Measure the shipped model on all its held-out tasks and write its card: `python data/demo/card.py`, about 3 minutes.

The table in `model/README.md` is `model/scores.json`, and a test holds a sample of it against the model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from workbench import evaluate, headline, load_model, to_markdown  # noqa: E402

CARD = """---
license: apache-2.0
language: [en, de]
library_name: transformers
---

# The demo model

A Llama of {layers} layers x {width}, {parameters:.1f}M parameters, trained on the [demo world](../README.md) and nothing else. It exists so
that layer pruning, healing and forgetting can be seen on two CPU cores. It knows nothing of the real world.

- **Made by** `python data/demo/train.py` (seed {seed}, {steps} steps of {batch} x 256 tokens, {tokens:.0f}M tokens, AdamW {lr} with cosine
  schedule) on one {gpu} with torch {torch} and transformers {transformers}; `training.json` has the loss. Alone on the card that
  takes about 4 minutes.
- **Chat form** `<|user|>...<|end|><|assistant|>...<|end|>`; byte-level BPE of 2,048 entries, digits split; context 512 tokens.
- **Licence** Apache-2.0, as the project.

## Scores on held-out tasks

All items, greedy, float32, by `evaluate(model, tokenizer, "demo")`:

{table}
## Is it a lucky one?

Every number below is one run of the training script, one model each, measured on 200 items a task before this one was chosen. The scores
of the whole models do not differ; which layers they can spare does.

| seed | reasoning, facts: whole | block of 2 that stories pick | after removing it | deepest 2, last layer kept |
|---|---|---|---|---|
| 0 (shipped) | 1.00, 1.00 | 7-8 | .39, .99 | .06, 1.00 |
| 1 | 1.00, 1.00 | 4-5 | .65, .57 | .06, .96 |
| 2 | 1.00, 1.00 | 2-3 | .01, 1.00 | .12, 1.00 |
| 3 | 1.00, 1.00 | 3-4 | .02, .70 | .35, 1.00 |
| 2, trained again | 1.00, 1.00 | 4-5 | .65, .93 | .04, 1.00 |

Seed 0 ships because it shows best what the papers describe: a block of two layers whose loss hurts reasoning badly and knowledge
little. That is a choice, not a finding. In two of the five models the informed block is worse for reasoning than the deepest one.
Training is not deterministic to the bit: the same seed gives equal scores and another arrangement of layers, as the last row shows.
"""


def main() -> None:
    """Measure, and write scores.json and README.md beside the model."""
    model, tokenizer = load_model("demo")
    scores = headline(evaluate(model, tokenizer, "demo", batch_size=100))
    columns = ["task", "category", "metric", "value", "stderr", "n"]
    rows = scores[columns].reset_index(drop=True)
    (HERE / "model" / "scores.json").write_text(json.dumps(rows.to_dict("records"), indent=1) + "\n")
    made = json.loads((HERE / "model" / "training.json").read_text())
    numbers = {**made, "parameters": made["parameters"] / 1e6, "tokens": made["tokens"] / 1e6}
    (HERE / "model" / "README.md").write_text(CARD.format(table=to_markdown(rows), **numbers))


if __name__ == "__main__":
    main()
