"""What drafting refuses, in one line and before any model runs."""

from __future__ import annotations

import pytest
import torch
from drafts import without
from tiny import tiny_model, tiny_tokenizer

from workbench.speculation.acceptance import draft_rounds


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_bad_input_is_one_clear_line(model, tokenizer):
    good = {"progress": False, "max_new_tokens": 4}
    with pytest.raises(ValueError, match="by temperature alone, got top_k, top_p"):
        draft_rounds(model, tokenizer, [without(2)], ["Hi"], top_p=0.9, top_k=3, **good)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        draft_rounds(model, tokenizer, [without(2)], ["Hi"], temperature=-1, **good)
    with pytest.raises(ValueError, match="not empty"):
        draft_rounds(model, tokenizer, [without(2)], ["Hi", ""], **good)
    with pytest.raises(ValueError, match="at least one"):
        draft_rounds(model, tokenizer, [without(2)], {}, **good)
    with pytest.raises(ValueError, match="no room for max_new_tokens=300"):
        draft_rounds(model, tokenizer, [without(2)], ["Hi"], progress=False, max_new_tokens=300)
    with pytest.raises(ValueError, match="vocabulary of 331 tokens, it has 17"):
        draft_rounds(model, tokenizer, {"small": tiny_model("qwen3", vocab_size=17)}, ["Hi"], **good)
    with pytest.raises(ValueError, match="'deep' must not be deeper than its target: 8 and 7 layers"):
        draft_rounds(model, tokenizer, {"deep": tiny_model("qwen3", num_hidden_layers=8)}, ["Hi"], **good)
    with pytest.raises(ValueError, match="draft_lengths"):
        draft_rounds(model, tokenizer, [without(2)], ["Hi"], draft_lengths=[0], **good)
    with pytest.raises(ValueError, match="different names"):
        draft_rounds(model, tokenizer, [without(2), without(3)], ["Hi"], **good)


def test_drafts_and_targets_with_weights_that_are_no_numbers_are_refused():
    model, broken = tiny_model("llama"), tiny_model("llama", num_hidden_layers=5)
    with torch.no_grad():
        broken.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    for target, draft, what in ((model, broken, "draft 'b'"), (broken, broken, "the target")):
        with pytest.raises(ValueError, match=f"logits must be finite, {what}"):
            draft_rounds(target, tiny_tokenizer(), {"b": draft}, ["The fox"], progress=False)
