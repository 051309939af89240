"""What a model is asked: one way to a prompt's tokens, and room for its answer."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import BatchEncoding

from workbench.generation.prompts import (
    asked_ids,
    chat_prompt,
    context_length,
    end_tokens,
    response_room,
    token_ids,
)
from workbench.generation.responses import generate_responses, respond


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama", seed=3)


def ask(model, tokenizer, prompts):
    return generate_responses(model, tokenizer, prompts, progress=False, max_new_tokens=12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": "Hi"},
        pd.DataFrame({"prompt": ["Hi"]}),
        BatchEncoding({"input_ids": [[5]], "attention_mask": [[1]]}),
        torch.tensor([[5, 6]]),
        "Hi",
        b"Hi",
        None,
        (text for text in ["Hi"]),
        [],
        pd.Series([], dtype=str),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_what_is_no_list_of_prompts_is_refused(llama, tokenizer, wrong):
    with pytest.raises(
        ValueError, match=r"prompts must be (a list of at least one text|texts that)"
    ) as error:
        ask(llama, tokenizer, wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", ["", " \n", None, 5, [], [1.5], ["Hi"], [True], "half \ud800"])
def test_a_prompt_that_is_none_is_named_by_its_number(llama, tokenizer, wrong):
    with pytest.raises(ValueError, match=r"number 1 is|prompt 1 must be text"):
        ask(llama, tokenizer, ["Hi", wrong])


def test_a_system_prompt_opens_the_chat(tokenizer):
    assert chat_prompt(tokenizer, "Hi", system="Be brief.") == (
        "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"
    )


def test_there_is_room_for_nearly_every_answer_of_the_kind(llama, tokenizer):
    references = ["a b c d"] * 98 + ["a " * 50] * 2
    longest = len(tokenizer(references[-1])["input_ids"])
    room = response_room(llama, tokenizer, references)
    assert 1.5 * longest + 32 <= room < 1.5 * longest + 48 and room % 16 == 0
    assert response_room(llama, tokenizer, ["a " * 9000]) == context_length(llama)
    assert response_room(llama, tokenizer, ["a " * 9000], longest_prompt=100) == context_length(llama) - 100
    asked = pd.DataFrame({"instruction": ["Hi", "a b"], "reference": ["x", "y " * 9]})
    chosen = respond(llama, tokenizer, asked, max_new_tokens=None, progress=False)
    told = response_room(llama, tokenizer, asked["reference"])
    expected = respond(llama, tokenizer, asked, max_new_tokens=told, progress=False)
    pd.testing.assert_frame_equal(chosen, expected)


def test_what_a_frame_was_asked_with_is_read_again(tokenizer):
    asked = pd.DataFrame({"instruction": ["What is <|end|>?", "Hi"], "prompt": [None, "something else"]})
    asked.loc[0, "prompt"] = chat_prompt(tokenizer, "What is <|end|>?")
    spelled, other = asked_ids(tokenizer, asked)
    assert spelled.count(1) == 1 and other == token_ids(tokenizer, ["something else"])[0]
    assert asked_ids(tokenizer, asked[["prompt"]])[0].count(1) == 2  # by its text alone, as written


def test_a_model_tells_what_ends_an_answer_and_how_much_it_reads(llama, tokenizer):
    assert context_length(llama) == llama.config.max_position_embeddings
    assert tokenizer.eos_token_id in end_tokens(llama, tokenizer)
