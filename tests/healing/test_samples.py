"""What is learned: the response alone, each example once an epoch, packed or not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from healed import (
    make_examples,
    run,
)
from tiny import tiny_model, tiny_tokenizer

from workbench.generation.responses import PLAIN_PROMPT, chat_prompt
from workbench.healing.samples import Sample, collate, read_samples, text_samples, training_order


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.fixture
def examples():
    return make_examples()


@pytest.mark.parametrize("template", [True, False])
def test_the_response_and_its_eos_alone_are_learned(model, examples, template):
    tokenizer = tiny_tokenizer(chat_template=template)
    samples, counts = read_samples(model, tokenizer, examples, "reference", 128)
    assert counts == {"cut": 0, "left_out": 0}
    for sample, row in zip(samples, examples.itertuples(), strict=True):
        message = f"{row.instruction}\n{row.context}" if row.context else row.instruction
        prompt = chat_prompt(tokenizer, message)
        assert template == (prompt != PLAIN_PROMPT.replace("{text}", message))
        assert tokenizer.decode(sample.ids[: sample.n_prompt]) == prompt
        assert tokenizer.decode(sample.ids[sample.n_prompt :]) == f"{row.reference}<|end|>"


@pytest.mark.parametrize("packed", [False, True])
def test_the_targets_of_a_batch_decode_to_the_responses(model, tokenizer, examples, packed):
    samples, _ = read_samples(model, tokenizer, examples, "response", 128)
    batch = collate([(sample, 0.25) for sample in samples[:6]], packed=packed)
    assert len(batch["targets"]) == sum(sample.learned for sample in samples[:6])
    # each is the token after the position whose logits are asked for
    flat = batch["input_ids"].flatten()
    assert torch.equal(flat[batch["positions"] + 1], batch["targets"])
    texts = tokenizer.decode(batch["targets"]).split("<|end|>")[:-1]
    assert (sorted if packed else list)(texts) == (sorted if packed else list)(examples["response"][:6])


def test_the_eos_of_the_chat_template_is_learned_not_that_of_the_tokenizer(model, examples):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|system|>\n")
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<|system|>")]
    samples, _ = read_samples(model, tokenizer, examples, "reference", 128)
    assert tokenizer.decode(samples[0].ids).endswith(f"{examples.loc[0, 'reference']}<|system|>")


def test_long_responses_are_cut_and_long_prompts_left_out(model, tokenizer, examples, tmp_path):
    examples.loc[3, "instruction"] = "word " * 300
    examples.loc[5, "reference"] = "word " * 300
    samples, counts = read_samples(model, tokenizer, examples, "reference", 100)
    assert counts == {"cut": 1, "left_out": 1}
    assert len(samples) == 19
    assert max(len(sample.ids) for sample in samples) == 100
    healed = run(model, tokenizer, examples, tmp_path / "a")
    assert healed.log.attrs == {"cut": 1, "left_out": 1}


def test_plain_texts_are_learned_whole(tokenizer):
    texts = ["A story about a dog.", "x", "word " * 100]
    samples, counts = text_samples(tokenizer, texts, 50)
    assert [sample.n_prompt for sample in samples] == [1, 1]
    assert tokenizer.decode(samples[0].ids) == texts[0]
    assert len(samples[1].ids) == 50
    assert counts == {"cut": 1, "left_out": 1}


def test_the_order_has_each_example_once_an_epoch_with_little_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 200, 500).tolist()
    order = training_order(lengths, 1000, 16, seed=3)
    assert Counter(order) == Counter(list(range(500)) * 2)
    assert order == training_order(lengths, 1000, 16, seed=3)
    assert order != training_order(lengths, 1000, 16, seed=4)
    batches = [[lengths[k] for k in order[i : i + 16]] for i in range(0, 1000, 16)]
    padding = sum(max(batch) * len(batch) for batch in batches) / sum(map(sum, batches))
    assert padding < 1.06
    assert np.corrcoef(np.arange(62), [max(batch) for batch in batches[:62]])[0, 1] < 0.3  # not a curriculum
    assert Counter(training_order([5] * 3, 7, 2, seed=0)).most_common(1)[0][1] == 3


def samples(seed=0, lengths=(9, 4, 12, 5, 3)):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randint(5, 300, (length,), generator=generator).tolist() for length in lengths]
    return [Sample(ids, 1 + k % 2) for k, ids in enumerate(made)]


def test_packing_loses_no_token_and_makes_no_row_longer():
    rows = samples(lengths=(30, 3, 11, 19, 8, 2, 27))
    batch = collate([(sample, 1.0) for sample in rows], packed=True)
    assert batch["input_ids"].shape == (4, 30)
    starts = (batch["position_ids"] == 0).sum()
    assert starts >= len(rows)
    flat, places = batch["input_ids"].flatten(), batch["position_ids"].flatten()
    for sample in rows:
        at = [
            k
            for k in range(len(flat))
            if places[k] == 0 and flat[k : k + len(sample.ids)].tolist() == sample.ids
        ]
        assert len(at) == 1
    assert len(batch["targets"]) == sum(sample.learned for sample in rows)
