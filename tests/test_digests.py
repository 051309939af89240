"""Digests of weights: every element of every tensor counts, whatever its type, and each is read once."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_model
from torch import nn

from workbench import digests
from workbench.digests import model_digests, tensor_digest, weights_digest


class Odd(nn.Module):
    """Tensors of odd sizes and types: one large and not contiguous, one empty, one an unsaved buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.randn(13, 17, generator=torch.Generator().manual_seed(0)).T)
        self.short = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
        self.one = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.ones(0))
        self.register_buffer("mask", torch.tensor([True, False, True]), persistent=False)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("name", ["wide", "short", "one", "mask"])
def test_every_element_counts(monkeypatch, name, small):
    monkeypatch.setattr(digests, "SMALL", 2**26 if small else 0)
    module = Odd()
    found = {weights_digest(module)}
    shape = getattr(module, name).shape
    places = [()] if not shape else list(torch.ones(shape).nonzero().unbind())
    for place in places:
        changed = copy.deepcopy(module)
        with torch.no_grad():
            tensor, at = getattr(changed, name), tuple(place)
            tensor[at] = ~tensor[at] if tensor.dtype == torch.bool else tensor[at] * 2 + 1
        found.add(weights_digest(changed))
    assert len(found) == len(places) + 1


def test_the_digest_is_of_the_values_not_of_the_memory():
    module, twin = Odd(), Odd()
    twin.wide = nn.Parameter(twin.wide.detach().contiguous())
    assert weights_digest(module) == weights_digest(twin)
    assert weights_digest(copy.deepcopy(module)) == weights_digest(module)


def test_names_shapes_and_types_count():
    def of(tensor: torch.Tensor, name: str = "a") -> str:
        module = nn.Module()
        module.register_buffer(name, tensor)
        return weights_digest(module)

    ones = torch.ones(4)
    others = [of(ones, "b"), of(ones.view(2, 2)), of(ones.view(torch.int32))]
    assert len({of(ones), *others}) == 4


@pytest.mark.parametrize("small", [True, False])
def test_a_write_through_data_is_seen(monkeypatch, small):
    monkeypatch.setattr(digests, "SMALL", 2**26 if small else 0)
    model = tiny_model("llama")
    before = weights_digest(model)
    weight = model.model.layers[0].self_attn.q_proj.weight
    version = weight._version
    weight.data[:8] = 0
    assert weight._version == version  # torch did not notice
    assert weights_digest(model) != before


def test_large_tensors_in_pieces_equal_an_independent_sum(monkeypatch):
    monkeypatch.setattr(digests, "_WORDS", 8)
    tensor = torch.randint(-(2**62), 2**62, (37,), generator=torch.Generator().manual_seed(1))
    factors = digests._factors(torch, torch.device("cpu"))[:8].tolist()
    words, sums = tensor.tolist(), []
    for begin in range(0, 37, 8):
        total = sum(a * b for a, b in zip(words[begin : begin + 8], factors, strict=False)) % 2**64
        sums.append(total.to_bytes(8, "little"))
    assert digests._sums(tensor) == b"".join(sums)
    assert all(factor % 2 for factor in factors)


def test_the_settings_follow_configuration_and_not_where_the_model_lay():
    model = tiny_model("llama")
    before = model_digests(model)
    model.config._name_or_path = "/elsewhere"
    assert model_digests(model) == before
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5.0}
    after = model_digests(model)
    assert after["settings"] != before["settings"] and after["weights"] == before["weights"]


def test_offloaded_weights_are_those_of_this_load_alone():
    with torch.device("meta"):
        model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert weights_digest(model) == weights_digest(model) != weights_digest(other)


def test_tensors_alone():
    assert tensor_digest(torch.ones(3)) == tensor_digest(torch.ones(3))
    assert tensor_digest(torch.ones(3)) != tensor_digest(torch.ones(3, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_weights_on_a_gpu_have_the_same_digest():
    model = tiny_model("llama")
    assert weights_digest(copy.deepcopy(model).cuda()) == weights_digest(model)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "qwen3-moe", "bloom"])
def test_use_does_not_change_what_a_model_is(architecture):
    model, ids = tiny_model(architecture), torch.arange(2, 20)[None]
    before = model_digests(model)
    model.generate(ids, max_new_tokens=3, do_sample=False)
    assert model_digests(model.train().eval()) == before == model_digests(tiny_model(architecture))
