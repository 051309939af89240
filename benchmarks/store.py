"""What the run folder's store costs: the identity of a model, and a stage that is served.

    python benchmarks/store.py --device cuda --shape llama-8b   # one H200: half a minute
    python benchmarks/store.py --device cpu --shape demo        # two CPU cores: half a minute

Weights are random. The identity is compared with SHA-256 over the same bytes, copied to the CPU.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
from typing import Any

import pandas as pd
import torch
from measuring import LLAMA_8B, arguments, measured, numbers, random_llama, run_sections, write_record

from workbench.digests import weights_digest
from workbench.runs.run import open_run

SHAPES: dict[str, dict[str, int]] = {
    "llama-8b": LLAMA_8B,
    "demo": {
        "vocab_size": 2048,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 16,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "1b": LLAMA_8B | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
}
SERVED = 21


def sha256_of_bytes(model: torch.nn.Module) -> str:
    """Return the SHA-256 of all parameters, each copied to the CPU: what the digest is compared with."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()


def identity(model: torch.nn.Module) -> dict[str, Any]:
    """Measure the first digest, the next, the one after a write to one tensor, and SHA-256 beside them."""
    gib = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
    first, again = measured(lambda: weights_digest(model)), measured(lambda: weights_digest(model))
    assert first["result"] == again["result"]
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight[7, 11] += 1
    changed, plain = measured(lambda: weights_digest(model)), measured(lambda: sha256_of_bytes(model))
    assert changed["result"] != first["result"]
    parts = {"first": first, "again": again, "one tensor changed": changed, "sha256 of the bytes": plain}
    return {
        "gib": gib,
        "seconds_per_gib": first["seconds"] / gib,
        **{k: numbers(v) for k, v in parts.items()},
    }


def looked_at(model: Any, texts: list[str], n: int) -> pd.DataFrame:
    """Return a frame like that of a measurement."""
    return pd.DataFrame({"start": range(n), "distance": [1 / (i + 1) for i in range(n)]})


def served(model: torch.nn.Module) -> dict[str, Any]:
    """Measure a stage that is computed once and then served."""
    texts = [f"text {i} " + "word " * 200 for i in range(128)]
    with tempfile.TemporaryDirectory() as folder:
        run = open_run("bench", root=folder)
        times = [
            measured(lambda: run.frame("x.csv", looked_at, model, texts, n=528))["seconds"]
            for _ in range(SERVED)
        ]
    return {"median_ms": 1e3 * statistics.median(times[1:]), "worst_ms": 1e3 * max(times[1:])}


def main() -> int:
    """Run every section; return 1 when one failed."""
    options = arguments(__doc__ or "", list(SHAPES)).parse_args()
    model = random_llama(SHAPES[options.shape], options.device)
    sections = {"identity": lambda: identity(model), "served": lambda: served(model)}
    results, failed = run_sections(sections)
    name = f"store-{options.shape}-{options.device}"
    config = {
        "device": options.device,
        "shape": options.shape,
        "dtype": str(model.dtype),
        **SHAPES[options.shape],
    }
    print(write_record(name, options.out, config=config, results=results))
    print(pd.json_normalize(results).T.to_string(header=False))
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
