"""Perplexity and loss on the corpora that papers report: WikiText-2 (raw, test) and C4 (validation).

Two numbers go by the name "perplexity of WikiText-2". Per *word*, as the lm-evaluation-harness defines it
(and ITR reports it): each article is detokenised and scored as a rolling log-likelihood, and the sum is
divided by the number of words *before* detokenisation. Per *token*: the exponential of the mean loss over
the model's own tokens, here of the article as it stands. They differ by the tokens a word takes, so the
second cannot be compared between tokenizers. Both are given, under their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.data import Texts, load_texts
from workbench.evaluation import evaluate, perplexity
from workbench.tasks import load_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["C4_FILES", "corpus_perplexity"]

#: names under which C4 documents may lie in a folder; the first that is there
C4_FILES = ("c4_validation.jsonl", "c4-validation.jsonl", "c4.jsonl")


def corpus_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: str = "wikitext2",
    *,
    data: str | Path | None = None,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    max_length: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Loss and perplexity of a model in memory on WikiText-2 (raw, test split) or C4 (validation split).

    Every text is cut into windows of ``max_length`` predicted tokens; nothing is left out. The token values
    predict all tokens of a text but its first, the word values all of them, as the harness does. The common
    variant that joins all of WikiText-2 into one text before cutting is another number: there windows run
    across articles.

    Args:
        model: as for ``evaluate``.
        tokenizer: as for ``evaluate``.
        corpus: "wikitext2" or "c4".
        data: folder with ``wikitext2_raw_test.jsonl`` (one row a line of the articles) or one of
            ``C4_FILES``; None reads the hub.
        n: articles or documents: of WikiText-2 the first ``n`` (None: all 62), of C4 a sample drawn by
            ``seed`` (None: 512; GRO takes 60,000).
        seed: of the sample of C4.
        batch_size: windows that ride together.
        max_length: context in tokens; None takes the model's. GRO evaluates at 2048 or 4096, ITR at 1024.
        progress: shows a bar.

    Returns:
        The columns of ``evaluate``, one row a metric. ``loss`` (nats a token), ``normalized_loss`` (loss /
        log
        vocabulary: 0 certain, 1 uniform guessing; GRO 3.3) and ``token_perplexity``; for WikiText-2 also the
        harness's ``word_perplexity``, ``byte_perplexity`` and ``bits_per_byte``. ``task`` is "wikitext" or
        "c4".

    Raises:
        ValueError: unknown corpus, no data, a setting out of range.
    """
    if corpus not in ("wikitext2", "c4"):
        raise ValueError(f"corpus must be 'wikitext2' or 'c4', got {corpus!r}")
    texts = _articles(data, n) if corpus == "wikitext2" else _documents(data, n or 512, seed)
    task = "wikitext" if corpus == "wikitext2" else "c4"
    settings: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length, "progress": progress}
    frame = perplexity(model, tokenizer, texts, task=task, words=False, **settings)
    if corpus == "c4":
        return frame
    by_words = evaluate(model, tokenizer, "wikitext", limit=n, data=data, **settings)
    return pd.concat([by_words, frame], ignore_index=True)


def _articles(data: str | Path | None, n: int | None) -> list[str]:
    """Return the articles of the harness's own task, as they stand."""
    from workbench.harness import quiet

    with quiet():
        pages = load_tasks(["wikitext"], data=data)["tasks"]["wikitext"].eval_docs["page"]
    return list(pages[: len(pages) if n is None else n])


def _documents(data: str | Path | None, n: int, seed: int) -> Texts:
    if data is None:
        return load_texts("c4", n=n, seed=seed, split="validation")
    found = [path for file in C4_FILES if (path := Path(data).expanduser() / file).is_file()]
    if not found:
        raise ValueError(f"data must be a folder with one of {', '.join(C4_FILES)}, but {data} holds none")
    return load_texts(found[0], n=n, seed=seed)
