"""What a few tokens tell of a model."""

from __future__ import annotations

import pytest
import torch
from flows import flow_model
from tiny import tiny_model, tiny_tokenizer

from workbench.models.batches import make_batches, read_tokens
from workbench.models.probes import input_device, padding_is_felt, rotary_limits

IDS = torch.arange(5, 45)


@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "gemma3", "gpt2", "qwen3-moe", "bloom", "jamba"]
)
def test_causal_models_do_not_feel_what_comes_behind(architecture):
    assert not padding_is_felt(tiny_model(architecture), IDS)


@pytest.mark.parametrize("architecture", ["gemma3-bidirectional", "paligemma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_look_ahead_do(architecture, dtype):
    assert padding_is_felt(flow_model(architecture).to(dtype), IDS)


def test_a_model_is_asked_once_for_each_of_its_configurations():
    model = flow_model("gemma3-bidirectional")
    passes = []
    model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    model.train()
    assert padding_is_felt(model, IDS)
    assert padding_is_felt(model, IDS.flip(0))
    assert len(passes) == 2
    assert model.training
    model.config.use_bidirectional_attention = False
    padding_is_felt(model, IDS)
    assert len(passes) == 4


def test_texts_that_feel_each_other_share_no_batch():
    tokens = [torch.arange(n) * n + 5 for n in (3, 9, 3, 5, 9, 3)]
    for options in ({"batch_size": 4}, {"max_tokens": 100}):
        apart = make_batches(tokens, model=flow_model("paligemma"), **options)
        assert sorted(sorted(batch.texts) for batch in apart) == [[0, 2, 5], [1, 4], [3]]
        assert all(batch.mask.all() for batch in apart)
        together = make_batches(tokens, model=tiny_model("llama"), **options)
        assert [batch.texts for batch in together] == [
            batch.texts for batch in make_batches(tokens, **options)
        ]


def test_texts_on_two_sides_of_a_rotary_limit_share_no_batch():
    model = flow_model("phi3-longrope")
    assert rotary_limits(model) == [12]
    assert rotary_limits(tiny_model("llama")) == []
    tokens = [torch.arange(n) + 5 for n in (4, 11, 12, 13, 20)]
    batches = make_batches(tokens, batch_size=5, model=model)
    assert all(len({len(tokens[text]) > 12 for text in batch.texts}) == 1 for batch in batches)


def test_equal_texts_need_no_pass():
    model = tiny_model("llama")
    model.register_forward_pre_hook(lambda *_: pytest.fail("a pass"))
    model.model.register_forward_pre_hook(lambda *_: pytest.fail("a pass"))
    make_batches([IDS, IDS], batch_size=2, model=model)
    make_batches([IDS, IDS[:3]], batch_size=1, model=model)


def test_weights_that_wait_elsewhere_take_their_input_where_they_run():
    from accelerate import cpu_offload

    model = tiny_model("llama")
    assert input_device(model) == model.device
    offloaded = cpu_offload(model, execution_device=torch.device("cpu"))
    assert offloaded.device.type == "meta"
    assert torch.device(input_device(offloaded)).type == "cpu"
    tokens = read_tokens(offloaded, tiny_tokenizer(), ["one two", "three"], 8)
    ids, mask = make_batches(tokens, batch_size=2)[0].on_device_of(offloaded)
    assert ids.device.type == mask.device.type == "cpu"
    with pytest.raises(ValueError, match="must have its weights in memory or offloaded by accelerate"):
        input_device(tiny_model("llama").to("meta"))
