"""Engines: both say the same, and a batch that does not fit into memory is halved."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from workbench.generation.engines import by_length
from workbench.generation.prompts import chat_prompt
from workbench.generation.responses import generate_responses
from workbench.models.layers import decoder_forward


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_both_engines_say_the_same(temperature):
    model, tokenizer = tiny_model("llama", seed=3), tiny_tokenizer()
    texts = ["Hello there", "a", "What is the capital of the land?", "x y z"]
    prompts = [chat_prompt(tokenizer, text) for text in texts]
    options = {"max_new_tokens": 12, "batch_size": 3, "temperature": temperature, "progress": False}
    static, plain = (
        generate_responses(model, tokenizer, prompts, engine=engine, **options)
        for engine in ("static", "transformers")
    )
    assert static.equals(plain)
    assert static["response"].nunique() == len(texts)


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost():
    model, tokenizer = tiny_model("llama", seed=3), tiny_tokenizer()
    prompts = [chat_prompt(tokenizer, "a" * k) for k in range(1, 8)]
    options = {"max_new_tokens": 6, "batch_size": 7, "progress": False}
    wanted = generate_responses(model, tokenizer, prompts, **options)

    def refuse(module, args, kwargs):
        if len(kwargs.get("input_ids", args[0] if args else ())) > 2:
            raise torch.OutOfMemoryError("no room")

    for engine in ("static", "transformers"):
        handle = decoder_forward(model).register_forward_pre_hook(refuse, with_kwargs=True)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = generate_responses(model, tokenizer, prompts, engine=engine, **options)
        finally:
            handle.remove()
        assert str(said[0].message) == "7 prompts at once do not fit into memory; going on with 4"
        assert found.equals(wanted)


@pytest.mark.parametrize(
    ("engine", "architecture", "message"),
    [
        ("fast", "llama", "engine must be one of auto, static, transformers, got 'fast'"),
        ("static", "gpt2", "engine='static' cannot run this model: its positions are not rotary"),
    ],
)
def test_an_engine_that_cannot_is_refused_in_one_line(engine, architecture, message):
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    with pytest.raises(ValueError, match=message):
        generate_responses(model, tokenizer, ["hello"], max_new_tokens=4, engine=engine, progress=False)


def test_batches_hold_every_index_once_the_longest_first():
    lengths = [3, 8, 3, 1, 9, 3]
    batches = by_length(lengths, 4)
    assert batches == [[4, 1, 0, 2], [5, 3]]
    assert by_length([], 4) == []
