"""What iterative recovery is compared with."""

import pytest
import torch
from healed import logits, same_state, state
from tiny import tiny_model, tiny_tokenizer

from workbench.distances.influence import block_influence
from workbench.healing.adapters import as_variant
from workbench.pruning.collapse import collapsed_layers
from workbench.recovery.baselines import METHODS, choose_layers, laco, laco_for, shortgpt_layers
from workbench.runs.run import open_run

TOKENIZER = tiny_tokenizer()
TEXTS = ["A small dog runs.", "Anna has 12 apples and a lemon.", "The old house by the river."]


def similarity(model, original):
    rows = [TOKENIZER(text, return_tensors="pt")["input_ids"] for text in TEXTS]
    with torch.no_grad():
        states = [model.get_decoder()(input_ids=ids).last_hidden_state.flatten() for ids in rows]
    if original is None:
        return states
    cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in zip(states, original, strict=True)]
    return float(torch.stack(cosines).mean())


def test_shortgpt_ranks_by_block_influence():
    model = tiny_model("qwen3")
    ranking = block_influence(model, TOKENIZER, TEXTS, progress=False).sort_values("influence")["layer"]
    assert shortgpt_layers(model, TOKENIZER, TEXTS, target_layers=4) == tuple(ranking[:3])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_names_as_many_different_layers_as_are_to_go(method):
    model = tiny_model("llama")
    before = state(model)
    layers = choose_layers(model, TOKENIZER, TEXTS, target_layers=3, method=method)
    assert len(set(layers)) == 4 and set(layers) < set(range(7)) and same_state(model, before)
    if method == "gro":
        assert list(layers) == list(range(layers[0], layers[0] + 4))


@pytest.mark.parametrize("merging", ["equation", "published"])
def test_laco_merges_from_the_top_where_the_state_stays_alike(merging):
    model = tiny_model("llama")
    before = state(model)
    original = similarity(model, None)
    settings = {"merged_at_once": 2, "lowest": 1, "interval": 2, "threshold": 0.6, "merging": merging}
    found = laco(model, TOKENIZER, TEXTS, **settings)
    merges, place, left = [], 7 - 2, list(range(7))
    while place >= 1:  # the algorithm again, a model at a time
        count = min(1, len(left) - 1 - place)
        alike = -1.0
        if count:
            with collapsed_layers(model, [*merges, (left[place], count)], merging=merging):
                alike = similarity(model, original)
        if alike > 0.6:
            merges.append((left[place], count))
            del left[place + 1]
            place = min(place - 2, len(left) - 1 - 2) if place - 2 >= len(left) else place - 2
        else:
            place -= 1
    assert found.merges == tuple(merges) and same_state(model, before)
    assert set(found.removed) == set(range(7)) - set(left)
    with collapsed_layers(model, found.merges, merging=merging):
        merged = logits(model)
    assert list(found.steps["layers_left"])[-1] == len(left) if len(found.steps) else True
    assert torch.equal(merged, logits(model)) == (not merges)


def test_the_search_comes_to_the_depth_and_a_variant_keeps_what_was_merged(tmp_path):
    model = tiny_model("llama")
    grid = {"at_once": (2, 3), "thresholds": (-1.0, 0.5), "intervals": (1,)}
    found = laco_for(model, TOKENIZER, TEXTS, target_layers=5, **grid)
    tried = [
        laco(model, TOKENIZER, TEXTS, merged_at_once=count, threshold=threshold, interval=1)
        for count in (2, 3)
        for threshold in (-1.0, 0.5)
    ]
    assert abs(len(found.removed) - 2) == min(abs(len(one.removed) - 2) for one in tried)
    run = open_run("test", root=tmp_path)
    run.save_variant(found.variant("laco", model="tiny"))
    with collapsed_layers(model, found.merges):
        wanted = logits(model)
    with as_variant(model, run.variant("laco"), run=run):
        assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"merged_at_once": 1}, "merged_at_once must be"),
        ({"threshold": 2}, "threshold must be from -1 to 1"),
        ({"highest": 9}, "highest must be"),
        ({"merging": "telescoped"}, "merging must be one of"),
    ],
)
def test_settings_of_laco_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        laco(tiny_model("llama"), TOKENIZER, TEXTS, **settings)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"at_once": [99]}, "at_once some up to 7"),
        ({"thresholds": []}, "must hold numbers"),
        ({"at_once": [1]}, "merged_at_once must be"),
        ({"intervals": [0]}, "interval must be"),
    ],
)
def test_a_search_over_nothing_or_out_of_range_is_refused(grid, words):
    with pytest.raises(ValueError, match=words):
        laco_for(tiny_model("llama"), TOKENIZER, TEXTS, target_layers=5, **grid)


@pytest.mark.parametrize("target", [0, 7])
def test_a_target_out_of_range_is_refused(target):
    with pytest.raises(ValueError, match="target_layers must be"):
        choose_layers(tiny_model("llama"), TOKENIZER, TEXTS, target_layers=target)
