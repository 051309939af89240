"""A saved folder says the same to readers with transformers 4 and 5; `make test-compat` tries both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cutting import TOKENIZER
from tiny import tiny_config, tiny_model
from transformers import AutoConfig, AutoTokenizer

from workbench.pruning.removal import prune_
from workbench.pruning.saving import save_pruned
from workbench.pruning.spellings import spell_both_ways

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 2e4,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [2.0, 3, 4],
}
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}


def saved_config(folder: Path, architecture: str, rope: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """Return the config.json of a saved configuration, and hold that transformers 5 reads it as it was."""
    config = tiny_config(architecture, rope_parameters=rope, **overrides)
    config.save_pretrained(folder)
    before = AutoConfig.from_pretrained(folder).get_text_config()
    spell_both_ways(folder)
    after = AutoConfig.from_pretrained(folder).get_text_config()
    kinds = {"type": after.rope_parameters.get("rope_type")}
    assert after.rope_parameters in (before.rope_parameters, before.rope_parameters | kinds)
    entries: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return entries.get("text_config", entries)


@pytest.mark.parametrize(
    ("architecture", "rope", "old"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        ("mistral", {"rope_type": "default", "rope_theta": 1e6}, {"rope_theta": 1e6}),
        (
            "llama",
            LLAMA3,
            {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
        ),
        (
            "gpt-neox",
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e4, "partial_rotary_factor": 0.7},
            {
                "rotary_emb_base": 3e4,
                "rotary_pct": 0.7,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
        ),
        (
            "olmo2",
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e4},
            {"rope_theta": 3e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ),
        (
            "phi3",
            LONG,
            {
                "rope_theta": 2e4,
                "partial_rotary_factor": 1.0,
                "rope_scaling": {"type": "longrope", **{k: LONG[k] for k in ("short_factor", "long_factor")}},
            },
        ),
        *(
            (
                name,
                BY_LAYER,
                {
                    "rope_theta": 1e6,
                    "rope_local_base_freq": 2e4,
                    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                },
            )
            for name in ("gemma3", "gemma3-multimodal")
        ),
    ],
    ids=str,
)
def test_rotary_settings_stand_under_their_old_names_too(
    architecture: str, rope: dict[str, Any], old: dict[str, Any], tmp_path: Path
) -> None:
    limits = {"original_max_position_embeddings": 32} if rope is LONG else {}
    entries = saved_config(tmp_path, architecture, rope, **limits)
    names = {"rope_theta", "rope_scaling", "rope_local_base_freq", "rotary_emb_base", "rotary_pct"}
    found = {key: entries[key] for key in entries if key in names | {"partial_rotary_factor"}}
    assert found == old


def test_other_old_names(tmp_path: Path) -> None:
    tiny_model("qwen3-moe").save_pretrained(tmp_path)
    spell_both_ways(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    assert entries["torch_dtype"] == entries["dtype"] == "float32"
    assert entries["num_experts"] == entries["num_local_experts"] == 5
    assert AutoConfig.from_pretrained(tmp_path).num_experts == 5


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "bloom"])
def test_a_model_without_rotary_settings_gets_none(architecture: str, tmp_path: Path) -> None:
    tiny_config(architecture).save_pretrained(tmp_path)
    spell_both_ways(tmp_path)
    names = json.loads((tmp_path / "config.json").read_text())
    assert not [name for name in names if "rope" in name or "rotary" in name]


def test_what_transformers_5_would_read_otherwise_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_text()
    monkeypatch.setattr(
        "workbench.pruning.spellings._rotary", lambda kind, rope: {"rope_scaling": {"rope_theta": 7}}
    )
    spell_both_ways(tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_save_pruned_writes_both_and_a_tokenizer_that_both_know(tmp_path: Path) -> None:
    model = prune_(tiny_model("llama", rope_parameters=LLAMA3), [3])
    folder = save_pruned(model, TOKENIZER, tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert AutoConfig.from_pretrained(folder).rope_parameters == model.config.rope_parameters
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    # a list under extra_special_tokens stops transformers 4
    assert tokenizer["additional_special_tokens"] == ["<|user|>", "<|assistant|>", "<|system|>"]
    assert "extra_special_tokens" not in tokenizer
    again = AutoTokenizer.from_pretrained(folder)
    text = "<|user|>Anna has 12<|end|>"
    assert again(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert again.all_special_ids == TOKENIZER.all_special_ids
