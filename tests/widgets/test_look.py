from __future__ import annotations

import threading

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from workbench.distances.damage import block_damage
from workbench.models.layers import kept_layers
from workbench.pruning.removal import prune_, without_layers
from workbench.widgets.look import look, looking, shared_view

TEXTS = ["the cat sat on the mat", "a dog and a cat met in the long street", "no"]


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def never() -> bool:
    return False


def state(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_look_gives_the_losses_of_block_damage_and_two_answers(model, tokenizer):
    found = looking(model, tokenizer, TEXTS, "who sat", max_new_tokens=6)((2, 3), never)
    damage = block_damage(model, tokenizer, TEXTS, [(2, 2)], progress=False)
    assert found["base_loss"] == pytest.approx(damage["base_loss"].item(), abs=1e-12)
    assert found["loss"] == pytest.approx(damage["loss"].item(), abs=1e-12)
    assert found["prompt"] == "who sat"
    with without_layers(model, [2, 3]):
        alone = look(model, tokenizer, TEXTS, "who sat", [4], max_new_tokens=6)
    assert alone["base_text"] == found["text"]


def test_the_view_shares_every_weight_and_nothing_else(model):
    view = shared_view(model)
    theirs = dict(view.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in model.named_parameters())
    assert view.config is not model.config
    ids = torch.arange(5)[None]
    whole = model(ids).logits
    prune_(view, [1, 4])
    assert kept_layers(model) == tuple(range(7))
    assert torch.equal(model(ids).logits, whole)


def test_the_notebook_may_prune_while_a_look_runs(model, tokenizer):
    look_at = looking(model, tokenizer, TEXTS, "who", max_new_tokens=4)
    expected, before = look_at((3,), never), state(model)
    results, ids = [], torch.arange(6)[None]
    threads = [threading.Thread(target=lambda: results.append(look_at((3,), never))) for _ in range(3)]
    for thread in threads:
        thread.start()
    whole = model(ids).logits
    for _ in range(20):
        with without_layers(model, [0, 5]), torch.no_grad():
            model(ids)
    for thread in threads:
        thread.join()
    assert results == [expected] * 3
    assert torch.equal(model(ids).logits, whole)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("calls", [1, 5, 12, 30])
def test_a_cancelled_look_stops_between_layers_and_the_next_one_is_right(model, tokenizer, calls):
    look_at = looking(model, tokenizer, TEXTS, "who", max_new_tokens=8)
    count = iter(range(1000))
    assert look_at((2,), lambda: next(count) >= calls) is None
    assert next(count) == calls + 1
    other = looking(model, tokenizer, TEXTS, "who", max_new_tokens=8)
    assert look_at((1, 2), never) == other((1, 2), never)


def test_a_layer_that_is_not_there_is_named(model, tokenizer):
    with pytest.raises(ValueError, match="layers 0-6, got 9"):
        looking(model, tokenizer, TEXTS, "who")((9,), never)
