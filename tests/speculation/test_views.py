"""A draft beside its target on the same weights: nothing copied, nothing changed, adapters on one side."""

from __future__ import annotations

import copy

import pytest
import torch
from drafts import without
from healed import logits, make_examples, same_state, state
from healed import run as heal_run
from tiny import tiny_model, tiny_tokenizer

from workbench.healing.adapters import with_adapter
from workbench.healing.config import HealingConfig
from workbench.models.layers import kept_layers
from workbench.pruning.removal import prune_, without_layers
from workbench.runs.variant import Variant
from workbench.speculation.views import draft_view, early_exit


@pytest.mark.parametrize("architecture", ["llama-tied", "qwen3", "gemma3", "gpt2", "gpt-neox", "qwen3-moe"])
def test_the_view_is_the_pruned_model_on_the_target_s_memory(architecture):
    model = tiny_model(architecture)
    before, whole = state(model), logits(model)
    with draft_view(model, without(2, 3)) as draft:
        assert torch.equal(logits(draft), logits(prune_(copy.deepcopy(model), [2, 3])))
        assert torch.equal(logits(model), whole)
        assert kept_layers(draft) == (0, 1, 4, 5, 6) and len(kept_layers(model)) == 7
        memory = {one.data_ptr() for one in model.parameters()}
        assert all(one.data_ptr() in memory for one in draft.parameters())
        assert not {id(one) for one in model.parameters()} & {id(one) for one in draft.parameters()}
    assert same_state(model, before)


def test_an_adapter_acts_on_the_draft_alone(run):
    model = tiny_model("llama")
    whole = logits(model)
    config = HealingConfig(rank=3, learning_rate=5e-2, max_steps=2, batch_size=4, max_length=64)
    with without_layers(model, [2, 3]):
        heal_run(model, tiny_tokenizer(), make_examples(8), run.path("adapters/a"), config=config)
        with with_adapter(model, run.path("adapters/a")):
            wanted = logits(model)
    variant = Variant("a", "tiny", removed=[2, 3], adapter="adapters/a")
    with draft_view(model, variant, run=run) as draft:
        assert torch.equal(logits(draft), wanted)
        assert torch.equal(logits(model), whole)
    assert torch.equal(logits(model), whole)


def test_early_exit_is_the_first_layers_with_norm_and_head():
    model = tiny_model("llama")
    variant = early_exit(model, 4)
    assert (variant.name, variant.removed) == ("early-exit-4", (4, 5, 6))
    with draft_view(model, variant) as draft:
        ids = torch.arange(9)[None]
        state_after = model(input_ids=ids, output_hidden_states=True).hidden_states[4]
        wanted = model.lm_head(model.model.norm(state_after))
        torch.testing.assert_close(draft(input_ids=ids).logits, wanted)
    with pytest.raises(ValueError, match="fewer than the model's 7"):
        early_exit(model, 7)


def test_weights_that_are_not_there_are_refused():
    model = tiny_model("llama").to("meta")
    with pytest.raises(ValueError, match="full weights in memory"), draft_view(model, without(2)):
        pass
