"""What is learned: the response alone, each example once an epoch, packed or not."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from healed import (
    make_examples,
    run,
)
from tiny import tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from workbench.data.instructions import load_instructions
from workbench.generation.prompts import chat_prompt
from workbench.healing.adapters import with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.losses import response_loss
from workbench.healing.order import training_order
from workbench.healing.samples import (
    NO_SAMPLE,
    OrderedSamples,
    Sample,
    collate,
    digest,
    read_samples,
    text_samples,
)
from workbench.models.chat import render_chat
from workbench.models.templates import PLAIN_PROMPT
from workbench.pruning.removal import without_layers


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
    with pytest.warns(
        UserWarning, match="of 20 examples 1 are cut at max_length=128 tokens, .* 1 are left out"
    ):
        healed = run(model, tokenizer, examples, tmp_path / "a")
    assert healed.log.attrs == {"cut": 1, "left_out": 1, "dtype": "float32"}


def test_plain_texts_are_learned_whole(tokenizer):
    texts = ["A story about a dog.", "x", "word " * 100]
    samples, counts = text_samples(tokenizer, texts, 50)
    assert [sample.n_prompt for sample in samples] == [1, 1]
    assert tokenizer.decode(samples[0].ids) == texts[0]
    assert len(samples[1].ids) == 50
    assert counts == {"cut": 1, "left_out": 1}


@pytest.mark.parametrize(
    "options", [{"epochs": 2.6}, {"max_steps": 7}, {"epochs": 3, "packing": True}, {"max_steps": 1}]
)
def test_what_the_trainer_is_given_are_those_epochs(options):
    made = samples(lengths=[3 + k * 7 % 11 for k in range(21)])
    config = HealingConfig(batch_size=8, seed=3, **options)
    ordered = OrderedSamples(made, config)
    ordered.fill_up(8)
    given = [made.index(sample) for sample, _ in map(ordered.__getitem__, range(len(ordered.order)))]
    assert all(ordered[place][0] is NO_SAMPLE for place in range(len(ordered.order), len(ordered)))
    total = 8 * config.max_steps if config.max_steps else round(21 * config.epochs)
    assert len(given) == total
    for start in range(0, total, 8):
        update = given[start : start + 8]
        assert len(set(update)) == len(update)
        assert Counter(update) == Counter(ordered.order[start : start + 8])
    for start in range(0, total, 21):
        epoch = ordered.order[start : start + 21]
        assert len(set(epoch)) == len(epoch)


@pytest.mark.parametrize("packing", [True, False])
def test_references_and_rewrites_of_the_same_rows_are_learned_in_the_same_order(model, packing):
    rng = np.random.default_rng(0)
    examples = make_examples(60)
    examples["response"] = ["word " * int(n) for n in rng.integers(1, 30, 60)]
    examples["instruction"] += [" Why?" * int(n) for n in rng.integers(0, 9, 60)]
    config = HealingConfig(batch_size=8, epochs=3, packing=packing)
    both = []
    for column in ("reference", "response"):
        made, _ = read_samples(model, tiny_tokenizer(), examples, column, 128)
        both.append(OrderedSamples(made, config))
    assert [len(s.ids) for s in both[0].samples] != [len(s.ids) for s in both[1].samples]
    assert both[0].order == both[1].order
    for start in range(0, 180, 8):
        assert Counter(both[0].places[start : start + 8]) == Counter(both[1].places[start : start + 8])


def test_another_order_is_another_training(model, examples):
    changed = examples.assign(reference=examples["reference"] + " and so it is")
    read = [read_samples(model, tiny_tokenizer(), rows, "response", 128)[0] for rows in (examples, changed)]
    assert [sample.ids for sample in read[0]] == [sample.ids for sample in read[1]]
    assert digest(read[0]) != digest(read[1])


def learned_after(order, monkeypatch, demo_model, rows, held_out, out):
    model, tokenizer = demo_model
    monkeypatch.setattr("workbench.healing.samples.training_order", order)
    config = HealingConfig(rank=4, epochs=4, batch_size=16, learning_rate=3e-3, max_length=96)
    with without_layers(model, [7, 8]):
        adapter, _ = run(model, tokenizer, rows, out, config=config)
        with with_adapter(model, adapter):
            return response_loss(model, tokenizer, held_out, max_length=96)


@pytest.mark.slow
def test_grouping_by_length_learns_as_much_as_random_updates(demo_model, monkeypatch, tmp_path):
    rows = load_instructions("demo-math", n=72, seed=0)
    options = (monkeypatch, demo_model, rows[:40], rows[40:])
    grouped = learned_after(training_order, *options, tmp_path / "grouped")
    random = learned_after(
        lambda *given, **_: training_order(*given, grouped=False), *options, tmp_path / "random"
    )
    # with four epochs sorted together, copies of a sample share an update: 1.4 times the loss
    assert grouped == pytest.approx(random, rel=0.12)


def marked_tokenizer(*, begin=True, template=None):
    """Return a tokenizer that puts a begin mark in front of every text, as Llama's does."""
    tokenizer = tiny_tokenizer(chat_template=template is not None)
    tokenizer.bos_token = "<|system|>"
    number = tokenizer.bos_token_id
    if begin:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|system|> $A", special_tokens=[("<|system|>", number)]
        )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("concatenate", [True, False])
def test_a_text_has_its_begin_mark_once(concatenate):
    tokenizer = marked_tokenizer()
    texts = ["A story.", "<|system|>A story.", "<|system|> Another <|system|>"]
    made, _ = text_samples(tokenizer, texts, 64, concatenate=concatenate)
    rows = [sample.ids for sample in made]
    if concatenate:
        (whole,) = rows
        ends = [k + 1 for k, token in enumerate(whole) if token == tokenizer.eos_token_id]
        assert len(ends) == 3
        rows = [whole[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    assert [ids[:2].count(tokenizer.bos_token_id) for ids in rows] == [1, 1, 1]
    assert rows[0] == rows[1]


def test_texts_one_behind_the_other_fill_rows_and_lose_no_token(tokenizer):
    texts = ["A story about a dog.", "x", "word " * 100, "It ends with its own mark.<|end|>"]
    made, counts = text_samples(tokenizer, texts, 50, concatenate=True)
    assert counts == {"cut": 0, "left_out": 0}
    assert [len(sample.ids) for sample in made[:-1]] == [50] * (len(made) - 1)
    assert all(sample.n_prompt == 1 and sample.size == len(sample.ids) for sample in made)
    whole = [token for sample in made for token in sample.ids]
    expected = [token for text in texts[:3] for token in [*tokenizer(text)["input_ids"], 1]]
    assert whole[: len(expected)] == expected
    assert tokenizer.decode(whole).startswith("A story about a dog.<|end|>x<|end|>word word")


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("column", ["reference", "instruction", "context"])
def test_words_of_a_row_that_spell_a_control_token_are_text(model, template, column):
    tokenizer = tiny_tokenizer(chat_template=template)
    examples = make_examples(3)
    examples[column] = [f"The mark <|end|> closes a turn of <|user|> {i}.<|end|>" for i in range(3)]
    plain = make_examples(3)
    controls = [tokenizer.convert_tokens_to_ids(name) for name in ("<|end|>", "<|user|>", "<|assistant|>")]
    both = [read_samples(model, tokenizer, rows, "reference", 200)[0] for rows in (examples, plain)]
    for marked, bare in zip(*both, strict=True):
        assert [marked.ids.count(k) for k in controls] == [bare.ids.count(k) for k in controls]
        assert marked.ids[marked.n_prompt :].count(1) == 1
        assert marked.ids[-1] == 1
    told = tokenizer.decode(both[0][1].ids)
    assert told.count("The mark <|end|> closes a turn of <|user|> 1.<|end|>") == 1


THINKING = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
ASKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.mark.parametrize("template", [THINKING, ASKED])
def test_a_thought_that_the_template_opens_is_closed_before_the_response(model, template, examples):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    made, _ = read_samples(model, tokenizer, examples, "reference", 200)
    for sample, row in zip(made, examples.itertuples(), strict=True):
        prompt = tokenizer.decode(sample.ids[: sample.n_prompt])
        assert prompt.endswith("<|assistant|><think>\n\n</think>\n\n")
        message = f"{row.instruction}\n{row.context}" if row.context else row.instruction
        assert prompt == render_chat(tokenizer, [{"role": "user", "content": message}])
        assert tokenizer.decode(sample.ids[sample.n_prompt :]) == f"{row.reference}<|end|>"


def test_the_turns_before_are_read_and_not_learned(model, tokenizer):
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Anna."},
    ]
    examples = make_examples(2).assign(history=[history, json.dumps(history)], context="")
    for sample in read_samples(model, tokenizer, examples, "reference", 200)[0]:
        prompt = tokenizer.decode(sample.ids[: sample.n_prompt])
        assert prompt.startswith(
            "<|system|>Be brief.<|end|><|user|>Who?<|end|><|assistant|>Anna.<|end|><|user|>"
        )
        assert sample.ids[sample.n_prompt :].count(1) == 1


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, ""])
def test_a_context_that_is_missing_is_none(model, tokenizer, missing):
    examples = make_examples(3)
    expected = read_samples(model, tokenizer, examples.assign(context=""), "reference", 128)[0]
    found = read_samples(model, tokenizer, examples.assign(context=[missing] * 3), "reference", 128)[0]
    assert digest(found) == digest(expected)


@pytest.mark.parametrize("value", [5, 2.5, True, ["a"], {"a": 1}])
@pytest.mark.parametrize("column", ["reference", "instruction", "context"])
def test_what_is_no_text_is_refused_by_column_and_row(model, tokenizer, value, column):
    examples = make_examples(3)
    examples[column] = pd.Series([examples[column][0], value, examples[column][2]], dtype=object)
    with pytest.raises(ValueError, match=f"column {column} must hold texts, got .* in row row-1"):
        read_samples(model, tokenizer, examples, "reference", 128)


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
