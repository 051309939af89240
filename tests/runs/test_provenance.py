"""Where a result came from: the commit, the versions, the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import workbench as wb
from tests.tiny import tiny_model, tiny_tokenizer
from workbench.runs import provenance
from workbench.runs.run import Run


def test_the_commit_is_that_of_the_checkout(run: Run, root: Path):
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = head.stdout.strip() if head.returncode == 0 else None
    run.write_json("x.json", [1])
    assert run.provenance("x.json")["commit"] == expected


def test_a_notebook_is_named_as_the_command(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "/somewhere/05_evaluation.ipynb")
    assert provenance.command() == "notebook 05_evaluation.ipynb"
    monkeypatch.delenv("JPY_SESSION_NAME")
    monkeypatch.setattr(sys, "argv", ["train.py", "--name", "two words"])
    assert provenance.command() == "train.py --name 'two words'"


def test_a_library_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(provenance, "_LIBRARIES", ("torch", "no-such-library"))
    versions = provenance.library_versions()
    assert versions["no-such-library"] == "not installed"
    assert versions["torch"][0].isdigit()


SECRET = "hf_AbCdEfGhIjKlMnOp"
PLAIN = "Zx9-plain"


@pytest.mark.parametrize(
    "words",
    [
        ["--token", PLAIN],
        ["--token=" + PLAIN],
        ["--hf-token", PLAIN],
        ["--hf_token=" + PLAIN],
        ["--api-key", PLAIN],
        ["--wandb-api-key=" + PLAIN],
        ["--password", PLAIN],
        ["--client_secret", PLAIN],
        ["HF_TOKEN=" + PLAIN],
        ["--set", "OPENAI_API_KEY=" + PLAIN],
        [SECRET],
        ["--header", "Authorization: Bearer " + SECRET],
        ["--hub=" + SECRET],
        [f"https://me:{PLAIN}@example.org/x"],
        ["sk-proj-0123456789abcdef"],
        ["ghp_0123456789abcdef"],
        [f"https://example.org/x?a=1&token={PLAIN}"],
        [f"https://example.org/x?X-Amz-Signature={PLAIN}&b=2"],
        ["--set", "x={'hf_token': '" + PLAIN + "'}"],
        ["--config", '{"api_key": "' + PLAIN + '"}'],
        ["--x=token=" + PLAIN],
        ["--token", "-" + PLAIN],
    ],
)
def test_a_token_or_a_key_on_the_command_line_is_never_kept(words, monkeypatch, run: Run):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "3", *words, "--model", "org/name"])
    run.write_json("x.json", [1])
    run.frame("y.csv", pd.DataFrame, {"x": [1]})
    for file in run.folder.rglob("*"):
        if file.is_file():
            text = file.read_text()
            assert not any(secret in text for secret in (PLAIN, SECRET, "sk-proj-0123", "ghp_0123")), file
    told = run.provenance("x.json")["command"]
    assert told.startswith("train.py --seed 3 ") and told.endswith(" --model org/name")


def test_a_token_in_the_environment_is_in_no_file_of_a_run_an_adapter_or_a_plan(monkeypatch, run: Run):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    examples = pd.DataFrame({"instruction": list("abcd"), "response": list("efgh")})
    config = wb.HealingConfig(rank=2, max_steps=1, batch_size=2, max_length=32)
    told = {"examples": examples, "response": "response", "config": config}
    run.frame("angles.csv", wb.block_angles, model, tokenizer, ["one two", "three four"], progress=False)
    wb.heal(model, tokenizer, **told, out=run.path("adapter"), progress=False)
    wb.plan_training(run.path("plan"), "demo", **told, out=run.path("plan") / "adapter", layers=[2])
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "words",
    [["--max-new-tokens", "64"], ["--tokenizer=org/name"], ["--n-tokens=5"], ["risk-of-something-long"]],
)
def test_words_that_only_sound_like_keys_stay(words, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert provenance.command() == " ".join(["train.py", *words])
