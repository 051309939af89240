"""Perplexity and loss on the corpora that papers report: WikiText-2 (raw, test) and C4 (validation).

Two numbers go by the name "perplexity of WikiText-2". Per *word*, as the lm-evaluation-harness defines it
(and ITR reports it): each article is detokenised and scored as a rolling log-likelihood, and the sum is
divided by the number of words *before* detokenisation. Per *token*: the exponential of the mean loss over
the model's own tokens, here of the article as it stands. They differ by the tokens a word takes, so the
second cannot be compared between tokenizers. Both are given, under their names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import one_of
from workbench.data.texts import Texts, load_texts
from workbench.evaluation.evaluate import check_settings, evaluate, questions
from workbench.evaluation.tasks import load_tasks
from workbench.runs.files import write_text_atomic
from workbench.runs.keys import reads

#: tokens of a window where none are asked for, as GRO evaluates
WINDOW = 2048
#: names under which C4 documents may lie in a folder; the first that is there
C4_FILES = ("c4_validation.jsonl", "c4-validation.jsonl", "c4.jsonl")


def corpus_read(corpus: str = "wikitext2", data: Any = None) -> dict[str, Any]:
    """Return what ``corpus_perplexity`` reads of a folder: the files of one corpus, not what lies beside."""
    if corpus == "wikitext2":
        return questions("wikitext", data=data)
    return {"data": None if data is None else _c4_file(data)}


@reads(corpus_read, instead_of=("data",))
def corpus_perplexity(
    model: Any,
    tokenizer: Any,
    corpus: str = "wikitext2",
    *,
    data: str | Path | None = None,
    n: int | None = None,
    seed: int = 0,
    batch_size: int | str = 16,
    max_length: int | None = None,
    items: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Loss and perplexity of a model in memory on WikiText-2 (raw, test split) or C4 (validation split).

    Every text is cut into windows of ``max_length`` predicted tokens; nothing is left out. The token values
    predict all tokens of a text but its first, the word values all of them, as the harness does; where a
    tokenizer begins texts with a mark, every window begins with it, and neither scores it. The common
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
        batch_size: as for ``evaluate``; here windows.
        max_length: context in tokens; None takes ``WINDOW``, or the model's where that is shorter. GRO
            evaluates at 2048 or 4096, ITR at 1024.
        items: a .jsonl path for the loss of every text, as for ``perplexity``.
        progress: shows a bar.

    Returns:
        The columns of ``evaluate``, one row a metric. ``loss`` (nats a token), ``normalized_loss`` (loss over
        log vocabulary: 0 certain, 1 uniform guessing; GRO figure 3, B.2), ``token_perplexity``; for
        WikiText-2 also the harness's ``word_perplexity``, ``byte_perplexity`` and ``bits_per_byte``. ``task``
        is "wikitext" or "c4"; ``attrs["max_length"]`` is the context.

    Raises:
        ValueError: unknown corpus, no data, a setting out of range.
    """
    task = {"wikitext2": "wikitext", "c4": "c4"}[one_of(corpus, ("wikitext2", "c4"), "corpus")]
    from workbench.generation.prompts import context_length

    max_length = min(WINDOW, context_length(model) or WINDOW) if max_length is None else max_length
    settings: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length, "progress": progress}
    check_settings(model, batch_size, max_length, items)
    parts = [] if task == "c4" else [evaluate(model, tokenizer, task, limit=n, data=data, **settings)]
    texts = _documents(data, n or 512, seed) if task == "c4" else _articles(data, n)
    parts.append(perplexity(model, tokenizer, texts, task=task, words=False, items=items, **settings))
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs["max_length"] = max_length
    return frame


def _articles(data: str | Path | None, n: int | None) -> list[str]:
    """Return the articles of the harness's own task, as they stand."""
    from workbench.evaluation.harness import quiet

    with quiet():
        pages = load_tasks(["wikitext"], data=data)["tasks"]["wikitext"].eval_docs["page"]
    return list(pages)[:n]


def _documents(data: str | Path | None, n: int, seed: int) -> Texts:
    if data is None:
        return load_texts("c4", n=n, seed=seed, split="validation")
    return load_texts(_c4_file(data), n=n, seed=seed)


def _c4_file(data: str | Path) -> Path:
    found = [path for file in C4_FILES if (path := Path(data).expanduser() / file).is_file()]
    if not found:
        raise ValueError(f"data must be a folder with one of {', '.join(C4_FILES)}, but {data} holds none")
    return found[0]


def perplexity(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    task: str = "texts",
    max_length: int | None = None,
    batch_size: int | str = 8,
    words: bool = True,
    items: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Loss and perplexity on texts, by tokens and by words, in the rows of ``evaluate``.

    - ``loss``: mean negative log-likelihood in nats a token; every token but a text's first is predicted from
      what comes before it. A text longer than the context is scored in windows that overlap by one token.
      Where the tokenizer begins a text with a mark, each window begins with one, and none is scored.
    - ``normalized_loss``: loss / log(vocabulary size); 0 = certain, 1 = uniform guessing (GRO figure 3 and
      B.2).
    - ``token_perplexity``: exp(loss). Depends on the tokenizer.
    - ``word_perplexity``: the harness's definition of a rolling log-likelihood: exp of the negative
      log-likelihood of all tokens, the first one given BOS (EOS where there is none), a word between
      spaces. The texts count as they are: for WikiText-2 with the harness's detokenizer (ITR table 1) see
      ``corpus_perplexity``.

    Args:
        model: any decoder-only model; unchanged afterwards.
        tokenizer: the model's tokenizer; unchanged afterwards.
        texts: at least one; each of at least two tokens.
        task: what to call these texts in the frame.
        max_length: tokens of a window; None takes the model's context, at most 8192, and less where the
            logits of so many would not fit into memory; ``attrs["max_length"]`` says what was taken.
        batch_size: as for ``evaluate``; here windows.
        words: also ``word_perplexity``, which takes a second pass.
        items: a .jsonl path for the loss of every text, which ``read_items`` reads, so that variants can be
            compared text by text (``compare_items(..., metric="loss")``).
        progress: one bar.

    Returns:
        task, metric, n_shot (0), value, stderr (of the ratio of sums, texts as the sampling unit, copies of
        one as one; NaN for a single one), n (texts), truncated (0), higher_is_better (False), parent (""),
        category ("language").

    Raises:
        ValueError: no text, a text with fewer than two tokens, a setting out of range, or logits that are
            not finite.
    """
    check_settings(model, batch_size, max_length, items)
    import torch

    from workbench.evaluation.harness import quiet, ratio_of_sums, untouched
    from workbench.evaluation.in_memory import InMemory
    from workbench.evaluation.samples import item_line
    from workbench.models.batches import check_known
    from workbench.models.processes import failing_together

    with untouched(model, tokenizer), quiet(), failing_together():
        size: Any = {"batch_size": batch_size, "max_length": max_length}
        lm = InMemory(model, tokenizer, softmax_dtype=torch.float32, progress=progress, **size)
        ids = [lm.marked_ids(text) for text in texts]
        for number, tokens in enumerate(ids):
            if len(tokens) < 2:
                raise ValueError(f"texts[{number}] needs at least 2 tokens to predict one, got {len(tokens)}")
        check_known(model, ids, "text")
        with lm.bar:
            losses = -lm.rolling(ids, fill=False)
            counts = np.array([len(tokens) - 1 for tokens in ids])
            unit = pd.factorize(pd.Series(list(texts), dtype=object))[0]  # copies of a text say nothing new
            loss = ratio_of_sums(*(np.bincount(unit, sums) for sums in (losses, counts)))
            values = loss_values(model, *loss) | {"token_perplexity": _exponential(*loss)}
            if words:
                word_losses = -lm.rolling([[lm.prefix_token_id, *lm.bare_ids(text)] for text in texts])
                lengths = np.array([len(re.split(r"\s+", text)) for text in texts])
                sums = (np.bincount(unit, sums) for sums in (word_losses, lengths))
                values["word_perplexity"] = _exponential(*ratio_of_sums(*sums))
    if items is not None:
        told = enumerate(zip(texts, losses / counts, map(int, counts), strict=True))
        lines = (item_line(task, 0, k, {"loss": mean}, prompt=text, tokens=n) for k, (text, mean, n) in told)
        write_text_atomic(items, "".join(lines))
    frame = loss_rows(task, values, len(texts))
    frame.attrs["max_length"] = lm.window
    return frame


def loss_values(model: Any, loss: float, error: float = math.nan) -> dict[str, tuple[float, float]]:
    """Return a loss in nats a token as ``loss`` and ``normalized_loss``, each with its standard error."""
    scale = math.log(model.config.get_text_config().vocab_size)
    return {"loss": (loss, error), "normalized_loss": (loss / scale, error / scale)}


def loss_rows(task: str, values: Mapping[str, tuple[float, float]], n: int) -> pd.DataFrame:
    """Return measures of texts, each with its standard error, as rows of ``evaluate``."""
    common = {"n": n, "truncated": 0, "higher_is_better": False, "parent": "", "category": "language"}
    frame = pd.DataFrame([*values.values()], columns=["value", "stderr"])
    named = pd.DataFrame({"task": task, "metric": [*values], "n_shot": 0})
    return named.join(frame).assign(**common)


def _exponential(value: float, error: float) -> tuple[float, float]:
    """Return exp(value) and its standard error (first order)."""
    from workbench.evaluation.harness import exponential

    return exponential(value), exponential(value) * error
