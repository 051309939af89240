"""Write pruned models with one transformers, read them with another, compare the logits; see `.ci/compat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers

TEXTS = ["The river runs past the old mill, where 12 boats wait for 3 more.", "Ein kurzer Satz, 1 + 1 = 2."]
#: largest accepted difference of the logits, in their standard deviations
MOST = 1e-4

BASE = {"rope_type": "default", "rope_theta": 5e5}
LINEAR = {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 2e4,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [2.0, 3.0, 4.0],
}
BY_LAYER = {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}
#: architecture of tests/tiny.py, and the rotary settings to try there
CASES: list[tuple[str, dict[str, Any] | None]] = [
    *(("llama", rope) for rope in (None, BASE, LINEAR, YARN, LLAMA3, LINEAR | {"rope_type": "dynamic"})),
    *(
        (name, BASE)
        for name in ("mistral", "qwen3", "qwen3-moe", "granite", "falcon", "gemma2", "deepseek-v3")
    ),
    *(
        ("qwen3", YARN),
        ("olmo2", LINEAR),
        ("smollm3", None),
        ("smollm3", BASE),
        ("phi3", BASE),
        ("phi3", LONG),
    ),
    *(("gpt-neox", rope | {"partial_rotary_factor": 0.7}) for rope in (BASE, LINEAR)),
    *((name, rope) for name in ("gemma3", "gemma3-multimodal") for rope in (None, BY_LAYER)),
    *((name, None) for name in ("opt", "gpt2", "bloom", "gpt-neo", "llama-tied")),
]


@torch.no_grad()
def answer(folder: Path) -> tuple[list[list[int]], torch.Tensor]:
    """Return the tokens of the texts, and the logits, as any script would read the folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # other attentions leave out what they cannot do, in 4.57 the capping of Gemma 2
    kind: Any = transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, attn_implementation="eager").eval()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return ids, torch.cat([model(torch.tensor([one])).logits[0] for one in ids])


def write(work: Path) -> None:
    """Save a pruned model for every case, with the tokens and logits that it gives."""
    from tiny import tiny_model, tiny_tokenizer

    import workbench as wb

    for number, (name, rope) in enumerate(CASES):
        limits = {"original_max_position_embeddings": 32} if rope is LONG else {}
        overrides = {} if rope is None else {"rope_parameters": dict(rope)} | limits
        model, tokenizer = tiny_model(name, **overrides), tiny_tokenizer()
        scheme = "by-layer" if rope is BY_LAYER else (rope or {"rope_type": "as-it-is"})["rope_type"]
        save(wb.prune_(model, [3]), tokenizer, work / f"{number:02}-{name}-{scheme}")
    model, tokenizer = wb.load_model("demo", device="cpu")
    save(wb.prune_(model, [7, 8]), tokenizer, work / "demo")


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model, and beside it what the folder answers here."""
    import workbench as wb

    wb.save_pruned(model, tokenizer, folder)
    torch.save(answer(folder), folder.with_suffix(".pt"))


def read(work: Path) -> int:
    """Compare every folder with what it answered where it was written; return 1 when one differs."""
    wrong, files = 0, sorted(work.glob("*.pt"))
    for file in files:
        ids, logits = torch.load(file)
        try:
            found_ids, found = answer(file.with_suffix(""))
            off = ((found - logits).abs().max() / logits.std()).item() if found_ids == ids else float("inf")
            said = f"{off:.1e} standard deviations" if found_ids == ids else "other tokens"
        except Exception as error:  # whichever way the reader fails, this folder is not readable there
            off, said = float("inf"), f"{type(error).__name__}: {str(error).splitlines()[0]}"
        wrong += not off <= MOST
        print(f"{'same ' if off <= MOST else 'OTHER'}  {file.stem:32} {said}")
    print(
        f"transformers {transformers.__version__} reads {wrong} of {len(files)} folders as another function"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    step, work = sys.argv[1], Path(sys.argv[2])
    sys.exit(write(work) if step == "write" else read(work))
