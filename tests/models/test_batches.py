from __future__ import annotations

import json
import time
from itertools import count

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding

from workbench.bars import tqdm
from workbench.models.batches import (
    commonest_token,
    each_text,
    first_of,
    make_batches,
    measured_on,
    read_tokens,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_batches_hold_every_text_once_and_pad_only_behind(model, tokenizer):
    tokens = read_tokens(model, tokenizer, ["one two", "a", "three four five six", "b c", "d"], 100)
    batches = make_batches(tokens, batch_size=2)
    assert sorted(text for batch in batches for text in batch.texts) == [0, 1, 2, 3, 4]
    for batch in batches:
        for row, text in enumerate(batch.texts):
            assert batch.ids[row][batch.mask[row]].equal(tokens[text])
            assert batch.mask[row].tolist() == sorted(batch.mask[row].tolist(), reverse=True)


def test_rows_are_spread_evenly_over_batches():
    tokens = [torch.ones(3, dtype=torch.long)] * 9
    assert [len(batch.texts) for batch in make_batches(tokens, batch_size=4)] == [3, 3, 3]


def test_max_tokens_counts_padding_and_lets_a_long_text_run_alone():
    tokens = [torch.ones(n, dtype=torch.long) for n in (2, 9, 3, 4)]
    batches = make_batches(tokens, max_tokens=8)
    assert [batch.texts for batch in batches] == [[1], [3, 2], [0]]
    assert all(batch.ids.numel() <= 8 for batch in batches[1:])


def test_the_beginning_of_a_text_is_kept_whatever_the_tokenizer_truncates(model, tokenizer):
    tokenizer.truncation_side = "left"
    whole = read_tokens(model, tokenizer, ["one two three four"], 100)[0]
    assert read_tokens(model, tokenizer, ["one two three four"], 4)[0].equal(whole[:4])
    tokenizer.truncation_side = "right"


@pytest.mark.parametrize("ids", [[5, 6, 7], (5, 6, 7), torch.tensor([5, 6, 7], dtype=torch.int32)])
def test_token_ids_are_taken_as_they_are(model, ids):
    assert read_tokens(model, None, [ids], 100)[0].tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("texts", "max_length", "message"),
    [
        ([], 8, r"at least one text .*, got list \[\]"),
        ("one text", 8, "list of at least one text .*, got str 'one text'"),
        (["fine", " \n"], 8, "text 1 is empty"),
        ([[3, 4], []], 8, "text 1 is empty"),
        (["fine", 3], 8, "text 1 must be a string or a list of token ids, got int"),
        ([torch.ones(2, 2)], 8, "text 0 must be a string or a list of token ids, got Tensor"),
        ([[3, 331]], 8, "from 0 to 330, text 0 has 331"),
        ([[3, -1]], 8, "from 0 to 330, text 0 has -1"),
        ({"text": ["a", "b"]}, 8, "list of at least one text .*, got dict"),
        (pd.DataFrame({"id": [1], "text": ["a"]}), 8, "got DataFrame"),
        (BatchEncoding({"input_ids": [[3]], "attention_mask": [[1]]}), 8, "got BatchEncoding"),
        ({"a", "b"}, 8, "got set"),
        (iter(["a"]), 8, "got list_iterator"),
        (torch.tensor(3), 8, r"got Tensor tensor\(3\)"),
        (b"text", 8, "got bytes"),
        ([{"text": "a"}], 8, "text 0 must be a string or a list of token ids, got dict"),
        (torch.tensor([[5, 6, 7], [5, 0, 0]]), 8, "without padding, .* text 1 has 2 pad tokens"),
        (np.array([[5, 6, 7], [0, 5, 6]]), 8, "without padding, .* text 1 has 1 pad tokens"),
        ([[5, 6], [5, 6, 0]], 8, "without padding, .* text 1 has 1 pad tokens"),
        (["fine"], 0, "max_length must be a whole number >= 1, got 0"),
        (["fine"], 2.5, "max_length must be a whole number >= 1, got 2.5"),
        ([[3] * 300], 4096, "max_length must be between 1 and 256"),
    ],
)
def test_errors_name_what_is_allowed_and_what_came(model, tokenizer, texts, max_length, message):
    with pytest.raises(ValueError, match=message):
        read_tokens(model, tokenizer, texts, max_length)


@pytest.mark.parametrize("model", [None, "demo", torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_named(model, tokenizer):
    with pytest.raises(ValueError, match="model must be a transformers model, got"):
        read_tokens(model, tokenizer, ["a"], 8)


def test_pads_inside_a_text_and_one_end_mark_that_pads_are_the_texts_own(tokenizer):
    ending = tiny_tokenizer()
    ending.pad_token = ending.eos_token
    model = tiny_model("llama")
    assert read_tokens(model, tokenizer, [[5, 0, 6]], 8)[0].tolist() == [5, 0, 6]
    assert read_tokens(model, ending, [[5, 6, 1]], 8)[0].tolist() == [5, 6, 1]
    with pytest.raises(ValueError, match=r"text 0 has 2 pad tokens \(id 1\)"):
        read_tokens(model, ending, [[5, 6, 1, 1]], 8)
    model.config.pad_token_id = 7
    with pytest.raises(ValueError, match=r"text 0 has 1 pad tokens \(id 7\)"):
        read_tokens(model, None, [[7, 5, 6]], 8)


def marking(begin="<|user|>", end=None):
    """Return a tokenizer that puts a begin mark before and, perhaps, an end mark behind a text."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = begin
    named = [(name, tokenizer.convert_tokens_to_ids(name)) for name in (begin, end) if name]
    around = " ".join([begin, "$A", *([end] if end else [])])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=named)
    return tokenizer


def test_a_text_that_spells_its_begin_mark_gets_no_second_one(model):
    tokenizer = marking()
    plain, rendered = read_tokens(model, tokenizer, ["one two", "<|user|>one two"], 16)
    assert plain.tolist() == rendered.tolist()
    assert plain.tolist().count(tokenizer.bos_token_id) == 1


def test_texts_with_control_tokens_are_counted_and_read_as_they_stand(model):
    texts = ["one two", "<|user|>one two", "one <|end|> two", "<|user|>a<|end|><|assistant|>b<|end|>"]
    for tokenizer, expected in ((tiny_tokenizer(), 3), (marking(), 2), (marking(end="<|end|>"), 2)):
        tokens = read_tokens(model, tokenizer, texts, 32)
        assert 1 in tokens[2].tolist()
        assert measured_on(model, tokens, tokenizer=tokenizer)["control_texts"] == expected
    assert "control_texts" not in measured_on(model, tokens)


def test_copies_are_counted_and_named_by_the_first(model):
    tokens = read_tokens(model, None, [[5, 6], [7], [5, 6], [5, 6, 7]], 2)
    found = measured_on(model, tokens)
    assert first_of(tokens) == found["first_of"] == [0, 1, 0, 0]
    assert (found["duplicates"], found["n_texts"]) == (2, 4)
    json.dumps(found)
    assert "first_of" not in measured_on(model, tokens[:2])


def test_the_commonest_token_is_given_as_text(tokenizer):
    ids = tokenizer("a.")["input_ids"]
    assert commonest_token(tokenizer, [ids[-1], ids[-1], ids[0], ids[-1]]) == {
        "id": ids[-1],
        "text": ".",
        "share": 0.75,
    }
    assert commonest_token(None, [7])["text"] is None


def test_what_a_dynamic_rope_would_stretch_is_named():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(
        ValueError, match=r"between 1 and 16, .*got 30 for .*; beyond them its dynamic NTK rope places"
    ):
        read_tokens(
            tiny_model("llama", rope_parameters=rope, max_position_embeddings=16), None, [[3] * 30], 30
        )


def test_a_long_limit_is_fine_for_short_texts(model, tokenizer):
    assert len(read_tokens(model, tokenizer, ["short"], 4096)) == 1


def test_batch_size_must_be_positive(model, tokenizer):
    with pytest.raises(ValueError, match="batch_size must be a whole number >= 1, got 0"):
        make_batches(read_tokens(model, tokenizer, ["a"], 8), batch_size=0)


def test_strings_need_a_tokenizer(model):
    with pytest.raises(ValueError, match="tokenizer must be given"):
        read_tokens(model, None, ["a"], 8)


def test_each_text_is_measured_once_and_comes_back_in_its_place(model, tokenizer):
    tokens = read_tokens(model, tokenizer, ["one two", "a", "three four five six", "b c", "d"], 100)
    model.train()

    def measure(batch):
        assert not model.training
        assert not torch.is_grad_enabled()
        return torch.stack([batch.mask.sum(dim=1), batch.ids[:, 0]], dim=1)

    found = each_text(model, make_batches(tokens, batch_size=2), measure, title="x", progress=False)
    assert found.tolist() == [[len(ids), int(ids[0])] for ids in tokens]
    assert model.training
    model.eval()


def test_a_bar_moves_inside_a_batch_and_ends_without_a_word_of_it(model, monkeypatch):
    shown = []
    monkeypatch.setattr(tqdm, "display", lambda bar, *_, **__: shown.append((bar.n, bar.postfix or "")))
    monkeypatch.setattr(time, "time", count(10**11, 10).__next__)  # ten seconds from call to call
    tokens = read_tokens(model, None, [[3, 4, 5], [6, 7], [8, 9]], 8)
    one = make_batches(tokens, batch_size=3, model=model)
    losses = each_text(model, one, lambda batch: model(batch.ids).logits.sum(dim=(1, 2)), title="x")
    assert losses.shape == (3,)
    layers = [
        f"layer {layer} of {len(model.model.layers)}" for layer in range(1, len(model.model.layers) + 1)
    ]
    told = [(n, said) for n, said in shown if said]
    assert told == [(0, f"{where}, step {step}") for step, where in enumerate([*layers, "output"], 1)]
    assert shown[-1] == (3, "")
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_a_frame_was_measured_on_follows_the_tokens(model):
    one = measured_on(model, [torch.tensor([3, 4]), torch.tensor([5])], max_length=8)
    two = measured_on(model, [torch.tensor([3]), torch.tensor([4, 5])], max_length=8)
    assert (one["n_texts"], one["n_tokens"], one["max_length"]) == (2, 3, 8)
    assert one["tokens"] != two["tokens"]
