"""What the tests of pruning compare: logits, generated tokens, and all that a cut could leave behind."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from tiny import tiny_tokenizer
from torch import Tensor, nn

from workbench.models.layers import unwrap

TOKENIZER = tiny_tokenizer()
TEXTS = ["The dog and the cat went home by the river, and then they all went to town again.", "Anna has 12"]
NEW_TOKENS = 6


def batch(side: str = "left") -> dict[str, Tensor]:
    return dict(TOKENIZER(TEXTS, return_tensors="pt", padding=True, padding_side=side))


@torch.no_grad()
def logits(model: nn.Module, *, use_cache: bool = False, side: str = "left") -> Tensor:
    inputs = batch(side)
    return model(**inputs, use_cache=use_cache).logits[inputs["attention_mask"].bool()]


@torch.no_grad()
def logits_in_two_parts(model: nn.Module) -> Tensor:
    inputs = batch()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    first = model(input_ids=ids[:, :-5], attention_mask=mask[:, :-5], use_cache=True)
    rest = model(
        input_ids=ids[:, -5:], attention_mask=mask, past_key_values=first.past_key_values, use_cache=True
    )
    return torch.cat([first.logits, rest.logits], dim=1)[mask.bool()]


def generated(model: Any, **options: Any) -> Tensor:
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS} | options
    return model.generate(**batch(), pad_token_id=0, **options)[:, -NEW_TOKENS:]


@torch.no_grad()
def greedy_without_cache(model: nn.Module) -> Tensor:
    """Generate the slow way: one whole forward pass a token."""
    inputs = batch()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    takes_positions = "position_ids" in inspect.signature(unwrap(model).forward).parameters
    for _ in range(NEW_TOKENS):
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if takes_positions else {}
        last = model(input_ids=ids, attention_mask=mask, use_cache=False, **positions).logits[:, -1].float()
        last[:, TOKENIZER.eos_token_id] = -torch.inf
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids[:, -NEW_TOKENS:]


def settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the plain attributes of every module, indices of layers among them."""
    plain = (bool, int, float, str, list, tuple)
    return {
        name: {
            k: v
            for k, v in vars(module).items()
            if isinstance(v, plain) and k[0] != "_" and k != "name_or_path"
        }
        for name, module in model.named_modules()
    }


def state(model: nn.Module) -> dict[str, Any]:
    """Return all that surgery could leave behind: weights, configuration, indices, settings, module tree."""
    weights = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    return {"settings": settings(model), "weights": weights, "config": copy.deepcopy(vars(model.config))}


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["settings"] == after["settings"]
    assert {**before["config"]} == {**after["config"]}
    assert list(before["weights"]) == list(after["weights"])
    for name, (address, tensor) in before["weights"].items():
        assert after["weights"][name][0] == address, f"{name} was copied"
        assert torch.equal(after["weights"][name][1], tensor), f"{name} changed"


def assert_exact(model: Any, expected: Tensor, expected_tokens: Tensor) -> None:
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model, use_cache=True), expected)
    torch.testing.assert_close(logits_in_two_parts(model), expected, rtol=0, atol=2e-5)
    assert torch.equal(generated(model), expected_tokens)
