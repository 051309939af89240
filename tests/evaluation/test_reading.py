"""Texts are read in batches, each once, into the tokens that the tokenizer gives each alone."""

from __future__ import annotations

import pytest
import tokenizers
from tiny import tiny_model, tiny_tokenizer
from tokenizers import models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from workbench.evaluation import reading
from workbench.evaluation.in_memory import InMemory

TEXTS = [
    "Anna has 12 apples.\n\nBen\thas  none.\n",
    "  Ünïcödé — ﬁ ﬀ 東京 🍎🍏 e\u0301 \u00a0 x\u200by",
    "<|end|> inside <|system|>the text<|end|>",
    "a",
    "1234567890 " * 40,
    "I'm, don't; they've!  ?!\r\n\r\n   ",
]
SPECIALS = ["<|pad|>", "<|end|>", "<|system|>", "<unk>"]


def marked():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", 4)]
    )
    return tokenizer


def trained(kind: str):
    """A tokenizer of another family, trained on the texts: pieces of words, or likeliest pieces of a text."""
    if kind == "pieces":
        whole = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
        whole.normalizer = normalizers.BertNormalizer(lowercase=True)
        whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIALS, show_progress=False)
    else:
        whole = tokenizers.Tokenizer(models.Unigram())
        whole.normalizer = normalizers.NFKC()
        whole.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
        )
    whole.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<|pad|>", eos_token="<|end|>")


WAYS = {"bytes": tiny_tokenizer, "marked": marked}
WAYS |= {kind: lambda kind=kind: trained(kind) for kind in ("pieces", "likeliest")}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_batches_are_read_without_offsets_into_the_same_tokens(way, split, monkeypatch):
    tokenizer, asked = WAYS[way](), []
    tokenizer.split_special_tokens = split

    class Watched(reading._Fast):
        def __getattr__(self, name):
            asked.append(name)
            return super().__getattr__(name)

    monkeypatch.setattr(reading, "_Fast", Watched)
    whole, lm = tokenizer.backend_tokenizer, InMemory(tiny_model("llama"), tokenizer, batch_size=2)
    whole.encode_special_tokens = not split  # as another call may have left it
    for special in (None, False):
        lm._read(TEXTS * 2, special)
    read = {special: [lm.known[text, special].tolist() for text in TEXTS] for special in (None, False)}
    lm.known.clear()
    alone = {special: [list(lm.tok_encode(text, special)) for text in TEXTS] for special in (None, False)}
    assert read == alone
    assert asked.count("encode_batch") >= 2, "the tokenizers' own batches"
    assert tokenizer.backend_tokenizer is whole
    assert len({len(ids) for ids in alone[None]}) > 3
    assert tokenizer(TEXTS[0], return_offsets_mapping=True)["offset_mapping"][-1][1] > 20


def test_a_tokenizer_is_as_it_was_after_a_text_that_it_refuses():
    tokenizer = tiny_tokenizer()
    whole = tokenizer.backend_tokenizer
    lm = InMemory(tiny_model("llama"), tokenizer, batch_size=2)
    with pytest.raises((TypeError, ValueError)):
        lm._read(["right", 3], False)
    assert tokenizer.backend_tokenizer is whole
