"""Perplexity of WikiText-2 and C4: which number is which, against ten lines of torch."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from scoring import PACKAGED, read_jsonl
from tiny import tiny_model

import workbench as wb
from workbench.data.texts import load_texts
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.items import read_items
from workbench.evaluation.offline import wikitext_pages
from workbench.evaluation.perplexity import corpus_perplexity, perplexity
from workbench.runs.files import write_text_atomic
from workbench.runs.keys import stage_key

WINDOW = 200


@torch.no_grad()
def loss_of(model, tokens: list[int]) -> tuple[float, int]:
    """Summed loss of all tokens but the first, in windows of as many predictions."""
    total = 0.0
    for start in range(0, len(tokens) - 1, WINDOW):
        window = torch.tensor([tokens[start : start + WINDOW + 1]])
        picked = model(window[:, :-1]).logits.log_softmax(-1).gather(-1, window[:, 1:, None])
        total -= picked.sum().item()
    return total, len(tokens) - 1


def test_wikitext_by_words_and_by_tokens(model, tokenizer, shared_data):
    frame = corpus_perplexity(
        model, tokenizer, "wikitext2", data=shared_data, n=2, max_length=WINDOW, progress=False
    )
    values = frame.set_index("metric")["value"]
    assert list(values.index) == [
        *("word_perplexity", "byte_perplexity", "bits_per_byte"),
        *("loss", "normalized_loss", "token_perplexity"),
    ]
    assert set(frame["task"]) == {"wikitext"}
    lines = [row["text"] for row in read_jsonl(shared_data / "wikitext2_raw_test.jsonl")]
    pages = wikitext_pages(lines)[:2]
    sums = [loss_of(model, tokenizer(page)["input_ids"]) for page in pages]
    loss = sum(total for total, _ in sums) / sum(count for _, count in sums)
    assert values["loss"] == pytest.approx(loss, rel=1e-5)
    assert values["token_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert values["normalized_loss"] == pytest.approx(loss / math.log(331), rel=1e-5)
    words = evaluate(
        model, tokenizer, "wikitext", data=shared_data, limit=2, max_length=WINDOW, progress=False
    ).set_index("metric")["value"]
    assert values["word_perplexity"] == words["word_perplexity"]


@torch.no_grad()
def test_word_perplexity_of_wikitext_equals_an_independent_reference(tokenizer, shared_data):
    """The detokenised article is scored in one window; words are counted before that."""
    import importlib.util

    path = PACKAGED / "wikitext" / "preprocess_wikitext.py"
    spec = importlib.util.spec_from_file_location("preprocess_wikitext", path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    model = tiny_model(max_position_embeddings=20000, num_hidden_layers=1)
    page = wikitext_pages(row["text"] for row in read_jsonl(shared_data / "wikitext2_raw_test.jsonl"))[0]
    text = theirs.wikitext_detokenizer({"page": page})
    tokens = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
    total = model(tokens[:, :-1]).logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).sum().item()
    options = {"data": shared_data, "n": 1, "max_length": 20000, "progress": False}
    frame = corpus_perplexity(model, tokenizer, "wikitext2", **options)
    value = frame.set_index("metric")["value"]["word_perplexity"]
    assert value == pytest.approx(math.exp(-total / len(re.split(r"\s+", page))), rel=1e-4)


def test_c4_is_a_sample_held_fixed(model, tokenizer, shared_data):
    options = {"data": shared_data, "max_length": WINDOW, "progress": False}
    frame = corpus_perplexity(model, tokenizer, "c4", n=3, seed=1, **options)
    assert list(frame["metric"]) == ["loss", "normalized_loss", "token_perplexity"]
    assert (frame["n"] == 3).all()
    texts = load_texts(shared_data / "c4.jsonl", n=3, seed=1)
    sums = [loss_of(model, tokenizer(text)["input_ids"]) for text in texts]
    expected = sum(total for total, _ in sums) / sum(count for _, count in sums)
    assert frame.set_index("metric")["value"]["loss"] == pytest.approx(expected, rel=1e-5)
    assert corpus_perplexity(model, tokenizer, "c4", n=3, seed=1, **options).equals(frame)
    assert not corpus_perplexity(model, tokenizer, "c4", n=3, seed=2, **options).equals(frame)


def test_what_cannot_be_read_is_named(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="corpus must be one of wikitext2, c4, got 'pile'"):
        corpus_perplexity(model, tokenizer, "pile")
    with pytest.raises(ValueError, match=r"one of c4_validation\.jsonl"):
        corpus_perplexity(model, tokenizer, "c4", data=tmp_path)
    with pytest.raises(ValueError, match="data must be a folder with public sets"):
        corpus_perplexity(model, tokenizer, "wikitext2", data=tmp_path)


def test_a_stage_counts_the_file_of_the_corpus_and_nothing_beside_it(tmp_path, monkeypatch):
    def key() -> str:
        return stage_key(wb.corpus_perplexity, (None, None, "c4"), {"data": "sets"}).fingerprint

    monkeypatch.chdir(tmp_path)
    write_text_atomic(tmp_path / "sets" / "c4.jsonl", '{"text": "one"}\n')
    before = key()
    write_text_atomic(tmp_path / "sets" / "notes.txt", "mine")
    assert key() == before
    write_text_atomic(tmp_path / "sets" / "c4.jsonl", '{"text": "two"}\n')
    assert key() != before


def test_tokens_loss_equals_an_independent_reference(model, tokenizer):
    texts = ["the quick brown fox", "Anna gives 12 apples to Ben. " * 30, "by the river"]
    with torch.no_grad():
        losses, counts = [], []
        for text in texts:
            tokens = torch.tensor([tokenizer(text)["input_ids"]])
            logits = torch.cat(
                [model(tokens[:, s : s + 50]).logits for s in range(0, tokens.shape[1] - 1, 50)], 1
            )
            picked = logits[:, : tokens.shape[1] - 1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
            losses.append(-picked.sum().item())
            counts.append(tokens.shape[1] - 1)
    loss = sum(losses) / sum(counts)
    frames = [
        perplexity(model, tokenizer, texts, max_length=50, batch_size=b, progress=False) for b in (1, 2, 64)
    ]
    for frame in frames:
        values = frame.set_index("metric")["value"]
        assert values["loss"] == pytest.approx(loss, rel=1e-5)
        assert values["token_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert values["normalized_loss"] == pytest.approx(loss / math.log(331), rel=1e-5)
        assert values["word_perplexity"] == pytest.approx(
            frames[0].set_index("metric")["value"]["word_perplexity"]
        )
    assert set(frame.columns) == set(evaluate_columns())


def evaluate_columns() -> list[str]:
    return "task metric n_shot value stderr n truncated higher_is_better parent category".split()  # noqa: SIM905


def test_words_equal_the_harness_task_and_its_error_the_bootstrap(scored, model, tokenizer, folder):
    texts = [
        json.loads(line)["text"] for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    ours = (
        perplexity(model, tokenizer, texts, task="toy_texts", progress=False)
        .set_index("metric")
        .loc["word_perplexity"]
    )
    task = scored[0].set_index(["task", "metric"]).loc[("toy_texts", "word_perplexity")]
    assert ours["value"] == pytest.approx(task["value"], rel=1e-6)
    assert ours["stderr"] == pytest.approx(task["stderr"], rel=1e-4)
    items = scored[1]
    words = np.array([len(text.split(" ")) for text in texts])
    sums = np.log(items[items["metric"] == "word_perplexity"]["value"].to_numpy()) * words
    draws = np.random.default_rng(0).integers(len(texts), size=(20000, len(texts)))
    resampled = np.exp(sums[draws].sum(1) / words[draws].sum(1))
    assert task["stderr"] == pytest.approx(resampled.std(), rel=0.15)


def test_copies_of_a_text_do_not_narrow_the_error(model, tokenizer):
    texts = ["The old mill stands by the river.", "A cat sat down."]
    once, twice, alone = (
        perplexity(model, tokenizer, some, progress=False).set_index("metric")
        for some in (texts, texts * 2, texts[:1] * 3)
    )
    assert once["value"].tolist() == pytest.approx(twice["value"].tolist(), rel=1e-6)
    assert once["stderr"].tolist() == pytest.approx(twice["stderr"].tolist(), rel=1e-6)
    assert alone["stderr"].isna().all() and alone["n"].eq(3).all()


def test_uniform_guessing_has_normalised_loss_one(tokenizer):
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    values = perplexity(model, tokenizer, ["the quick brown fox", "a lazy dog"], progress=False).set_index(
        "metric"
    )
    assert values.loc["normalized_loss", "value"] == pytest.approx(1, abs=1e-6)
    assert values.loc["token_perplexity", "value"] == pytest.approx(331, rel=1e-5)


def test_windows_are_those_of_the_papers_and_never_longer_than_the_model(tokenizer, tmp_path):
    pages = ["the quick brown fox and a lazy dog " * 400, "by the river " * 20]
    (tmp_path / "c4.jsonl").write_text("".join(json.dumps({"text": page}) + "\n" for page in pages))
    lengths: list[int] = []
    for context, expected in ((5000, 2048), (100, 100)):
        model = tiny_model(max_position_embeddings=context, num_hidden_layers=1)
        model.get_input_embeddings().register_forward_hook(lambda *call: lengths.append(call[1][0].shape[1]))
        lengths.clear()
        options = {"data": tmp_path, "n": 2, "progress": False, "items": tmp_path / "items.jsonl"}
        frame = corpus_perplexity(model, tokenizer, "c4", **options)
        assert frame.attrs["max_length"] == max(lengths) == expected
        assert sorted(read_items(tmp_path / "items.jsonl")["prompt"]) == sorted(pages)
    with pytest.raises(ValueError, match="n must be a whole number >= 1, got 0"):
        wb.corpus_perplexity(model, tokenizer, "c4", data=tmp_path, n=0)


@pytest.mark.parametrize("texts", [[], "one text", ["fine text", ""], ["fine text", "a"], ["text", None]])
def test_texts_that_cannot_be_scored_are_refused(model, tokenizer, texts):
    with pytest.raises(ValueError, match="text"):
        wb.perplexity(model, tokenizer, texts, progress=False)


def test_tokens_that_the_model_does_not_know_are_refused(tokenizer):
    small = tiny_model(vocab_size=200)
    with pytest.raises(ValueError, match="token ids must be from 0 to 199, text 0 has"):
        perplexity(small, tokenizer, ["by the river and a lazy dog"], progress=False)


def test_without_a_length_a_window_is_no_longer_than_its_logits_may_be(tokenizer, monkeypatch):
    from workbench.evaluation import in_memory, reading

    long, wide = {"max_position_embeddings": 131_072, "num_hidden_layers": 1}, {"vocab_size": 128_256}
    for sizes, expected in (({}, 8192), (wide | {"hidden_size": 6}, 4096)):
        for asked, window in ((None, expected), (100_000, 100_000)):
            model = tiny_model(**long | sizes)
            assert in_memory.InMemory(model, tokenizer, batch_size=1, max_length=asked).window == window
    monkeypatch.setattr(reading, "_LONGEST_WINDOW", 128)
    model, text = tiny_model(**long), "a lazy dog " * 100
    with pytest.warns(UserWarning, match="texts are read in windows of 128 tokens, as the"):
        frame = perplexity(model, tokenizer, [text], progress=False)
    asked = perplexity(model, tokenizer, [text], max_length=128, progress=False)
    assert frame.attrs["max_length"] == asked.attrs["max_length"] == 128
    assert frame["value"].tolist() == asked["value"].tolist()
