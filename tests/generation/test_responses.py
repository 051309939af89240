"""Responses in batches: the same as one prompt at a time, by every model, whatever it is batched with."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import breaks_at, tiny_model, tiny_tokenizer
from tokenizers import normalizers
from transformers.utils import chat_template_utils

import workbench as wb
from workbench.generation import responses
from workbench.generation.engines import in_halves
from workbench.generation.prompts import chat_prompt, context_length, end_tokens, token_ids
from workbench.generation.responses import asked_ids, generate_responses, respond, response_batches
from workbench.healing.distillation import self_distill
from workbench.models.templates import PLAIN_PROMPT
from workbench.runs.files import locked

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
        ({"prompts": ["fine", " "]}, ["not empty", "number 1"]),
        ({"prompts": ["fine", "word " * 400]}, ["prompts 1", "context of 256", "max_new_tokens"]),
        ({"max_new_tokens": 256}, ["prompts 0", "context of 256"]),
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
    reads_otherwise = tiny_tokenizer()
    reads_otherwise.backend_tokenizer.normalizer = normalizers.Replace("Hello", "Good day")
    with pytest.raises(ValueError, match="another tokenizer"):
        ask(llama, reads_otherwise, prompts[:2], out=out)
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


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_a_row_spells_is_read_as_text_and_its_history_is_asked(tokenizer, family):
    model = tiny_model(family, seed=3)
    history = json.dumps([{"role": "system", "content": "a b"}])
    asked = pd.DataFrame(
        {
            "instruction": ["What is <|end|>?", "d e"],
            "context": ["see <|user|>", None],
            "history": ["", history],
        }
    )
    found = respond(model, tokenizer, asked, max_new_tokens=5, progress=False)
    first = [2, *tokenizer("What is <|end|>?\nsee <|user|>", split_special_tokens=True)["input_ids"], 1, 3]
    second = tokenizer("<|system|>a b<|end|><|user|>d e<|end|><|assistant|>")["input_ids"]
    alone = [ask(model, tokenizer, [ids], max_new_tokens=5).loc[0, "response"] for ids in (first, second)]
    assert list(found["response"]) == alone
    assert asked_ids(tokenizer, found) == asked_ids(tokenizer, asked) == [first, second]
    assert asked_ids(tokenizer, found.assign(prompt="Hi")) == token_ids(tokenizer, ["Hi", "Hi"])
    assert asked_ids(tokenizer, found[["prompt"]]) == token_ids(tokenizer, list(found["prompt"]))
    assert list(found["prompt"]) == [
        "<|user|>What is <|end|>?\nsee <|user|><|end|><|assistant|>",
        "<|system|>a b<|end|><|user|>d e<|end|><|assistant|>",
    ]


def test_prompts_may_be_tokens(llama, tokenizer, prompts, tmp_path):
    tokens = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    pd.testing.assert_frame_equal(ask(llama, tokenizer, tokens), ask(llama, tokenizer, prompts))
    once = ask(llama, tokenizer, tokens, out=tmp_path / "a.jsonl")
    again = [[np.int64(token) for token in row] for row in tokens]
    pd.testing.assert_frame_equal(ask(llama, tokenizer, again, out=tmp_path / "a.jsonl"), once)
    with pytest.raises(ValueError, match="prompts 1 have tokens outside the model's vocabulary of 331"):
        ask(llama, tokenizer, [[5], [5, 331]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": "8"}, "max_new_tokens must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"seed": 1.5}, "seed must be"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_are_checked_before_anything_runs(llama, tokenizer, options, words):
    with pytest.raises(ValueError, match=words):
        wb.generate_responses(llama, tokenizer, ["Hi"], temperature=1.0, **options)


def test_a_journal_is_a_file(llama, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="is a folder, a pipe or a device; give the path of a file"):
        ask(llama, tokenizer, ["Hi"], out=tmp_path)


@pytest.mark.parametrize("engine", ["transformers", "static"])
def test_a_pad_token_without_an_embedding_pads(llama, prompts, engine):
    tokenizer = tiny_tokenizer()
    expected = [ask(llama, tokenizer, [prompt]).loc[0, "response"] for prompt in prompts]
    tokenizer.add_special_tokens({"pad_token": "[PAD2]"})
    tokenizer.add_tokens(["[PAD3]"])
    tokenizer.pad_token = "[PAD3]"
    assert tokenizer.pad_token_id >= llama.get_input_embeddings().num_embeddings
    assert list(ask(llama, tokenizer, prompts, engine=engine)["response"]) == expected


def test_a_journal_goes_on_after_midnight(llama, tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "<|system|>{{ strftime_now('%d %b %Y') }}<|end|>" + tokenizer.chat_template
    rows = pd.DataFrame({"id": ["a", "b"], "instruction": ["a b", "c"], "reference": ["d", "e"]})
    rows[["context", "answer"]] = ""
    options = {"max_new_tokens": 5, "progress": False}

    def made():
        prompts = [chat_prompt(tokenizer, text) for text in TEXTS]
        return (
            ask(llama, tokenizer, prompts, out=tmp_path / "a.jsonl"),
            respond(llama, tokenizer, rows, out=tmp_path / "b.jsonl", **options),
            self_distill(llama, tokenizer, rows, out=tmp_path / "c.jsonl", rule=lambda row: True, **options),
        )

    today, written = made(), [path.read_bytes() for path in sorted(tmp_path.iterdir())]

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert "2031" in tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    for now, before in zip(made(), today, strict=True):
        pd.testing.assert_frame_equal(now, before)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == written


def test_a_journal_has_one_writer_and_the_other_process_waits(tmp_path):
    script = (
        "import sys\n"
        "from tiny import tiny_model, tiny_tokenizer\n"
        "from workbench.generation.responses import generate_responses\n"
        "frame = generate_responses(tiny_model(), tiny_tokenizer(), ['by the river', 'the fox'], "
        "max_new_tokens=4, out=sys.argv[1], progress=False)\n"
        "print(len(frame))\n"
    )
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-c", script, str(out)]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", "."])}
    with locked(out):
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here, bufsize=1)
        assert "another process is at it" in other.stdout.readline()
        assert not out.exists()
    assert other.communicate()[0].strip() == "2"
    assert len(out.read_text().splitlines()) == 3


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_far_into_a_prompt_give_no_response(architecture, temperature, tokenizer):
    engines = ["transformers", "static"] if architecture == "llama" else ["transformers"]
    model, ids = breaks_at(tiny_model(architecture), 330), [list(range(5, 45)), [*range(45, 85), 330, 7]]
    for engine in engines:
        ask = partial(generate_responses, model, tokenizer, max_new_tokens=3, engine=engine, progress=False)
        assert len(ask(ids[:1], temperature=temperature)) == 1
        with pytest.raises(ValueError, match=r"logits are not finite on these texts: its weight .* is not"):
            ask(ids, temperature=temperature)


@pytest.mark.parametrize("engine", ["static", "transformers"])
def test_the_bar_counts_tokens_while_a_batch_runs(llama, tokenizer, capsys, monkeypatch, engine):
    monkeypatch.setattr(responses, "tqdm", partial(responses.tqdm, mininterval=0))
    generate_responses(llama, tokenizer, ["hello", "a dog"], max_new_tokens=24, engine=engine)
    said = capsys.readouterr().err
    assert "0/2" in said and "token 16 of 24" in said.split("2/2")[0]
