"""The loss of recovery against one that keeps everything, and what it reaches."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from healed import logits, same_state, state
from tiny import tiny_model

from workbench.healing.adapters import new_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.heal import lora_config
from workbench.healing.restoring import checkpointing as recomputed
from workbench.models.layers import kept_layers
from workbench.pruning.removal import prune_, removal_changes, two_states
from workbench.recovery.loss import PAPER, TERMS, Distillation, checked_loss

FAMILIES = ["llama", "qwen3", "gemma3", "gpt2"]
REMOVED = [2, 4]
LENGTHS = [11, 7]
WEIGHTS = {"hidden": 0.5, "attention": 2.0, "logits": 1.5, "kl": 0.7, "lm": 1.1}


def make_batch():
    torch.manual_seed(1)
    ids = torch.randint(5, 300, (2, max(LENGTHS)))
    ids[1, LENGTHS[1] :] = 0
    places = [(row, token) for row, n in enumerate(LENGTHS) for token in range(3, n - 1)]
    return {
        "input_ids": ids,
        "lengths": torch.tensor(LENGTHS),
        "positions": torch.tensor([row * ids.shape[1] + token for row, token in places]),
        "targets": torch.tensor([int(ids[row, token + 1]) for row, token in places]),
    }


def draw_(peft):
    torch.manual_seed(3)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.copy_(torch.randn_like(parameter) * 0.1)


def ours(model, removed, weights, *, temperature=1.0, checkpointing=False, chunk=5):
    """Return the loss and terms of the package, the adapter's gradients by name, and what asks for one."""
    with two_states(removal_changes(model, removed)) as whole:
        objective = Distillation(model, whole, kept_layers(model), weights=weights, temperature=temperature)
        lora = lora_config(model, HealingConfig(rank=3))
        with new_adapter(model, lora, 0) as peft:
            draw_(peft)
            again = recomputed(model) if checkpointing else nullcontext()
            model.train(checkpointing)
            with again, objective.acts(peft, chunk=chunk, compiled=False):
                total = peft(**make_batch())
                total.backward()
            reached = {name: p.grad.clone() for name, p in peft.named_parameters() if p.grad is not None}
            asked = {name for name, p in peft.named_parameters() if p.requires_grad}
    terms = dict(zip(objective.names, objective.seen[0].tolist(), strict=True))
    return total.item(), terms, reached, asked


def materialised(model, removed, weights, temperature=1.0):
    """The same another way: two models, eager attention, every matrix and all logits, one row at a time."""
    from peft import get_peft_model

    teacher, student = copy.deepcopy(model), copy.deepcopy(model)
    prune_(student, removed)
    kept = kept_layers(student)
    for one in (teacher, student):
        one.set_attn_implementation("eager")
    peft = get_peft_model(student, lora_config(student, HealingConfig(rank=3)))
    draw_(peft)
    batch = make_batch()
    asked = {"output_attentions": True, "use_cache": False}
    total, terms = 0.0, dict.fromkeys(weights, 0.0)
    for row, n in enumerate(LENGTHS):
        ids = batch["input_ids"][row : row + 1, :n]
        states = {}
        for who, one in (("teacher", teacher), ("student", student)):
            layers = one.get_decoder().layers if hasattr(one.get_decoder(), "layers") else one.transformer.h
            held = enumerate(layers)
            hooks = [layer.register_forward_hook(partial(_hold, states, (who, k))) for k, layer in held]
            with torch.set_grad_enabled(who == "student"):
                states[who] = (peft if who == "student" else one)(input_ids=ids, **asked)
            for hook in hooks:
                hook.remove()
        z = [states[who].logits[0].double() for who in ("student", "teacher")]
        found = {
            "hidden": sum(
                (states["student", k] - states["teacher", layer]).double().square().mean()
                for k, layer in enumerate(kept)
            ),
            "attention": sum(
                _visible(states["student"].attentions[k], states["teacher"].attentions[layer], model, layer)
                for k, layer in enumerate(kept)
            ),
            "logits": (z[0] - z[1]).square().mean(),
            "kl": temperature**2
            * (
                (z[1] / temperature).softmax(-1)
                * ((z[1] / temperature).log_softmax(-1) - (z[0] / temperature).log_softmax(-1))
            )
            .sum(-1)
            .mean(),
            "lm": torch.nn.functional.cross_entropy(z[0][3 : n - 1], ids[0, 4:n]),
        }
        for name in weights:
            terms[name] += n * found[name].item()
            total = total + n * weights[name] * found[name]
    total.backward()
    return total.item(), terms, {name: p.grad for name, p in peft.named_parameters() if p.grad is not None}


def _hold(states, key, _, __, out):
    states[key] = out[0] if isinstance(out, tuple) else out


def _visible(mine, theirs, model, layer):
    """Mean over heads and the pairs that a token sees, windows from the configuration."""
    n, config = mine.shape[-1], model.config
    seen = torch.ones(n, n).tril().bool()
    if getattr(config, "layer_types", None) and config.layer_types[layer] == "sliding_attention":
        seen &= torch.ones(n, n).triu(1 - config.sliding_window).bool()
    assert (mine[0, :, ~seen] == 0).all() and mine[0, :, seen].min() > 0
    return (mine - theirs).double().square()[0, :, seen].mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_two_models_that_keep_everything(family):
    model = tiny_model(family)
    total, terms, gradients, asked = ours(model, REMOVED, WEIGHTS, temperature=1.7)
    expected, parts, wanted = materialised(model, REMOVED, WEIGHTS, temperature=1.7)
    assert total == pytest.approx(expected, rel=1e-4)
    assert terms == pytest.approx(parts, rel=1e-3)
    assert gradients.keys() == wanted.keys() == asked
    for name, gradient in gradients.items():
        assert torch.allclose(
            gradient, wanted[name], rtol=2e-3, atol=2e-5 * wanted[name].abs().max() + 1e-7
        ), name


def test_it_is_zero_when_nothing_is_dropped_and_the_adapter_is_fresh(monkeypatch):
    monkeypatch.setitem(globals(), "draw_", lambda peft: None)
    total, terms, gradients, _ = ours(tiny_model("gemma3"), [], PAPER)
    assert total == 0 and set(terms.values()) == {0.0}
    assert not any(gradient.any() for gradient in gradients.values())


def test_gradients_reach_the_adapter_alone_and_the_model_is_the_same_to_the_bit():
    model = tiny_model("qwen3")
    before, said = state(model), logits(model)
    _, _, gradients, asked = ours(model, REMOVED, PAPER)
    assert gradients.keys() == asked and all("lora_" in name for name in gradients)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert same_state(model, before) and torch.equal(logits(model), said)
    assert model.config._attn_implementation == "sdpa"


def test_checkpointing_changes_nothing():
    one, other = (ours(tiny_model("llama"), REMOVED, PAPER, checkpointing=on) for on in (False, True))
    assert one[:2] == other[:2]
    assert all(torch.equal(one[2][name], other[2][name]) for name in one[2])


@pytest.mark.parametrize("name", TERMS)
def test_a_term_alone_is_what_it_is_beside_the_others(name):
    model = tiny_model("gemma3")
    _, together, *_ = ours(model, REMOVED, WEIGHTS)
    total, alone, *_ = ours(model, REMOVED, {name: 3.0})
    assert alone == pytest.approx({name: together[name]}, rel=1e-6)
    assert total == pytest.approx(3 * together[name], rel=1e-5)


def test_an_eager_model_is_compared_by_its_own_attention():
    model = tiny_model("gemma3")
    wanted, *_ = ours(model, REMOVED, {"attention": 1.0})
    model.set_attn_implementation("eager")
    found, *_ = ours(model, REMOVED, {"attention": 1.0})
    assert found == pytest.approx(wanted, rel=1e-5) and model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"states": 1}, "loss must be one of"),
        ({"hidden": -1}, "the weight of hidden must be a number >= 0"),
        ({"hidden": True}, "the weight of hidden"),
        ({"hidden": 0}, "must weigh at least one"),
        ({}, "must weigh at least one"),
    ],
)
def test_weights_that_are_none_are_refused_in_one_line(loss, words):
    with pytest.raises(ValueError, match=words):
        checked_loss(loss)
