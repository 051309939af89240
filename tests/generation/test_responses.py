"""Responses in batches: the same as one prompt at a time, by every model, whatever it is batched with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from workbench.generation.engines import in_halves
from workbench.generation.responses import (
    PLAIN_PROMPT,
    chat_prompt,
    context_length,
    end_tokens,
    generate_responses,
    respond,
    response_batches,
    token_ids,
)

TEXTS = [
    "Hello there",
    "a",
    "What is the capital of the land?",
    "Anna has 12 apples and gives 5 to Ben. How many are left? " * 2,
    "x y z",
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama", seed=3)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [chat_prompt(tokenizer, text) for text in TEXTS]


def ask(model, tokenizer, prompts, **options):
    return generate_responses(model, tokenizer, prompts, progress=False, **{"max_new_tokens": 12, **options})


def greedy_by_hand(model, tokenizer, prompt, steps):
    """Ten lines, no cache, no padding: what greedy decoding is."""
    ids = token_ids(tokenizer, [prompt])[0]
    new: list[int] = []
    with torch.no_grad():
        for _ in range(steps):
            token = int(model(input_ids=torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax())
            if token in end_tokens(model, tokenizer):
                break
            new.append(token)
    return tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False), len(new)


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2-sliding", "gemma3", "gpt2", "opt", "bloom", "qwen3-moe"]
)
def test_batched_responses_equal_greedy_decoding_by_hand(architecture, tokenizer, prompts):
    model = tiny_model(architecture, seed=3)
    found = ask(model, tokenizer, prompts, batch_size=3)
    assert found["prompt_index"].tolist() == [0, 1, 2, 3, 4]
    for row, prompt in zip(found.itertuples(), prompts, strict=True):
        assert (row.response, row.n_tokens) == greedy_by_hand(model, tokenizer, prompt, 12)


def test_a_response_ends_at_the_models_own_eos(tokenizer, prompts):
    model = tiny_model("llama", seed=3)
    long = ask(model, tokenizer, prompts[:1])
    assert not long.loc[0, "finished"]
    assert long.loc[0, "n_tokens"] == 12
    tokens = model.generate(
        torch.tensor(token_ids(tokenizer, prompts[:1])), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, -12:].tolist()
    stop = next(k for k, token in enumerate(tokens) if k >= 1 and token not in tokens[:k])
    model.generation_config.eos_token_id = [1, tokens[stop]]  # a list, as chat models have
    found = ask(model, tokenizer, prompts)
    assert found.loc[0, "finished"]
    assert found.loc[0, "n_tokens"] == stop
    assert found.loc[0, "response"] == tokenizer.decode(tokens[:stop])
    one_by_one = [ask(model, tokenizer, [prompt]).loc[0, "response"] for prompt in prompts]
    assert found["response"].tolist() == one_by_one  # rows that go on are not disturbed by those that ended


def test_the_models_sampling_settings_do_not_change_greedy_and_are_kept(tokenizer, prompts):
    model = tiny_model("llama", seed=3)
    plain = ask(model, tokenizer, prompts)
    model.generation_config.update(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0, max_length=7
    )
    settings = model.generation_config
    model.train()
    assert ask(model, tokenizer, prompts).equals(plain)
    assert model.generation_config is settings
    assert model.training


def test_sampling_gives_each_prompt_random_numbers_of_its_own(llama, tokenizer, prompts):
    together = ask(llama, tokenizer, prompts, temperature=1.0, seed=3)
    pairs = ask(llama, tokenizer, prompts, temperature=1.0, seed=3, batch_size=2)
    assert together.equals(pairs)
    assert not together.equals(ask(llama, tokenizer, prompts, temperature=1.0, seed=4))
    assert ask(llama, tokenizer, prompts[:1], temperature=1.0, seed=3).equals(together[:1])
    twice = ask(llama, tokenizer, [prompts[0]] * 2, temperature=1.0, seed=3)
    assert twice.loc[0, "response"] != twice.loc[1, "response"]


def test_samples_follow_the_models_distribution(llama, tokenizer, prompts):
    n, temperature = 2000, 0.7
    ids = token_ids(tokenizer, prompts[1:2])
    with torch.no_grad():
        logits = llama(input_ids=torch.tensor(ids)).logits[0, -1].double()
    expected = torch.softmax(logits / temperature, dim=-1).numpy()
    options = {"max_new_tokens": 1, "batch_size": 500, "temperature": temperature, "progress": False}
    seen: list[int] = []
    for batch in response_batches(llama, tokenizer, ids * n, **options):
        seen += [row.response for row in batch]
    # compare the commonest texts; a token that does not decode alone is left out
    texts = [tokenizer.decode([k], skip_special_tokens=True) for k in range(len(expected))]
    for k in np.argsort(-expected)[:8]:
        if texts.count(texts[k]) == 1:
            deviation = (expected[k] * (1 - expected[k]) / n) ** 0.5
            assert abs(seen.count(texts[k]) / n - expected[k]) < 4.5 * deviation


def test_work_that_goes_on_computes_the_same_batches(llama, tokenizer, prompts):
    ids = token_ids(tokenizer, prompts)
    options = {"max_new_tokens": 6, "batch_size": 2, "progress": False}
    every = list(response_batches(llama, tokenizer, ids, **options))
    assert [row.prompt_index for row in every[0]] == [3, 2]  # the longest first
    assert list(response_batches(llama, tokenizer, ids, done={3, 2, 0}, **options)) == every[1:]


def test_no_template_no_pad_token_no_chat_mark(llama):
    tokenizer = tiny_tokenizer(chat_template=False)
    tokenizer.pad_token = None
    assert chat_prompt(tokenizer, "Hi {text}") == PLAIN_PROMPT.replace("{text}", "Hi {text}")
    found = ask(llama, tokenizer, [chat_prompt(tokenizer, text) for text in TEXTS])
    assert found["response"].tolist() == [
        ask(llama, tokenizer, [chat_prompt(tokenizer, text)]).loc[0, "response"] for text in TEXTS
    ]
    assert tokenizer.pad_token is None


def test_bos_stands_once():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|system|>"})
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A <|end|>",
        special_tokens=[("<|system|>", tokenizer.bos_token_id), ("<|end|>", 1)],
    )
    plain, marked = token_ids(tokenizer, ["Hello", "<|system|>Hello"])
    assert plain == marked
    assert plain[0] == tokenizer.bos_token_id
    assert plain.count(tokenizer.bos_token_id) == 1
    assert 1 not in plain  # nor is the prompt closed before it is answered


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": []}, ["at least one"]),
        ({"prompts": "one text"}, ["a list"]),
        ({"prompts": ["fine", " "]}, ["not empty", "1 of 2"]),
        ({"prompts": ["fine", "word " * 400]}, ["prompts 1", "context of 256", "max_new_tokens"]),
        ({"max_new_tokens": 256}, ["prompts 0", "context of 256"]),
        ({"max_new_tokens": 0}, ["max_new_tokens", "got 0"]),
        ({"batch_size": 0}, ["batch_size", "got 0"]),
        ({"temperature": -1}, ["temperature", "got -1"]),
    ],
)
def test_bad_arguments_give_one_clear_line(llama, tokenizer, change, words):
    with pytest.raises(ValueError) as error:
        ask(llama, tokenizer, **{"prompts": ["Hello"], **change})
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_a_model_without_a_limit_on_positions_has_no_context_length():
    assert context_length(tiny_model("llama")) == 256
    assert context_length(tiny_model("gpt2")) == 256
    assert context_length(tiny_model("bloom")) is None


def test_a_call_that_was_killed_goes_on_and_ends_the_same(llama, tokenizer, prompts, tmp_path, monkeypatch):
    wanted = ask(llama, tokenizer, prompts, batch_size=2)
    out = tmp_path / "responses.journal.jsonl"
    assert ask(llama, tokenizer, prompts, batch_size=2, out=out).equals(wanted)
    lines = out.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(prompts)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:9])  # killed while a line was written
    calls = []
    # not by a hook on the model: that would make it another one
    monkeypatch.setattr(
        "workbench.generation.responses.in_halves", lambda *a: calls.append(1) or in_halves(*a)
    )
    assert ask(llama, tokenizer, prompts, batch_size=2, out=out).equals(wanted)
    some = len(calls)
    assert ask(llama, tokenizer, prompts, batch_size=2, out=out).equals(wanted)
    assert some > 0 and len(calls) == some  # nothing is generated twice


def test_responses_of_another_model_or_prompt_are_never_mixed(llama, tokenizer, prompts, tmp_path):
    out = tmp_path / "responses.journal.jsonl"
    ask(llama, tokenizer, prompts[:2], out=out)
    for changed, model, what in (
        ({}, tiny_model("llama", seed=4), "model"),
        ({"seed": 1}, llama, "generation"),
    ):
        with pytest.raises(ValueError, match=f"another {what}"):
            ask(model, tokenizer, prompts[:2], out=out, **changed)
    with pytest.raises(ValueError, match="another prompts"):
        ask(llama, tokenizer, prompts[1:3], out=out)
    assert len(ask(llama, tokenizer, prompts[1:3], out=out, overwrite=True)) == 2


def test_a_frame_is_answered_row_by_row_with_its_context(llama, tokenizer):
    asked = pd.DataFrame(
        {"id": ["a", "b"], "instruction": ["a b c", "d e"], "context": ["", "c c"]}, index=[7, 3]
    )
    found = respond(llama, tokenizer, asked, max_new_tokens=4, progress=False)
    prompts = [chat_prompt(tokenizer, text) for text in ("a b c", "d e\nc c")]
    assert list(found["prompt"]) == prompts and list(found["id"]) == ["a", "b"]
    wanted = ask(llama, tokenizer, prompts, max_new_tokens=4)
    assert list(found["response"]) == list(wanted["response"])
    assert list(found["finished"]) == list(wanted["finished"])
    plain = respond(llama, tokenizer, asked[["instruction"]], max_new_tokens=4, progress=False)
    assert plain["prompt"][1] == chat_prompt(tokenizer, "d e")
