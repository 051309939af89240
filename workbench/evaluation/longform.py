"""QMSum as GRO scores it (C.5): meetings summarised for a query, in the form of SCROLLS, measured by ROUGE-2.

The harness's own ``scrolls_qmsum`` fetches rows and metric from the network when it is built, and cannot be
imported with transformers 5. So its prompt, stop rule and joining of references are stated here again, and
ROUGE is the library's that SCROLLS takes. Rows come from ``qmsum_validation.jsonl`` in the folder ``data``,
one JSON object a line as SCROLLS publishes them: ``id``, ``pid``, ``input`` (the query, an empty line, the
meeting's transcript), ``output`` (the reference; rows of one ``id`` are one item with several references).

``rouge1``, ``rouge2`` and ``rougeL`` are F-measures of one response, the best over its references, without
stemming, as SCROLLS defines them; a task's score is their mean. They are fractions between 0 and 1, as all
scores here; SCROLLS gives 100 times as much. A transcript longer than the context loses its beginning, which
the column ``truncated`` counts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from workbench.evaluation.suites import TASKS

_ROUGE = ("rouge1", "rouge2", "rougeL")


def rouge_of(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return the measures of one response to an item."""
    return rouge(results[0], doc["outputs"])


def rouge(response: str, references: list[str]) -> dict[str, float]:
    """Return ROUGE-1, ROUGE-2, ROUGE-L (F-measure, 0 to 1, no stemming), each the best over the references.

    Raises:
        ValueError: no reference.

    >>> rouge("the cat sat", ["the cat lay", "dogs bark"])["rouge2"]
    0.5
    """
    if not references:
        raise ValueError("references must be at least one text, got none")
    return {name: score.fmeasure for name, score in _scorer().score_multi(references, response).items()}


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(_ROUGE), use_stemmer=False)


#: the task ``scrolls_qmsum`` as the harness's task files state theirs, zero-shot
QMSUM = {**TASKS["scrolls_qmsum"], "process_results": rouge_of}
