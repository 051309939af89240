"""More views of how far responses moved: length and form, a map of the embeddings, divergence summed up.

Frames in, frames out, no torch. Similarity itself is ``similarity.response_similarity``; the divergence of
the next token is ``divergence.token_divergence``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked
from workbench.data.answers import final_answer
from workbench.data.quantities import same_answer
from workbench.data.words import STATED_FORMS
from workbench.forgetting.similarity import embed_texts, encoder_read, finished, paired_responses, seen
from workbench.runs.keys import reads
from workbench.statistics import bootstrap_interval

#: how a response states its final answer; the first that fits
FORMS = {form: re.compile(pattern) for form, pattern in STATED_FORMS.items()}
_DESCRIBED = ["length", "base_length", "form", "base_form", "has_answer", "same_answer", "same_text"]
#: a number, but no sign that it is the answer; no number at all
BARE, NO_ANSWER = "a last number", "no number"


def answer_form(text: str) -> str:
    """Return how a response states its final answer: a key of ``FORMS``, "a last number" or "no number".

    >>> answer_form("So the answer is 7."), answer_form("7 apples"), answer_form("Many apples.")
    ('the answer is 7', 'a last number', 'no number')
    """
    if final_answer(text) is None:
        return NO_ANSWER
    return next((form for form, pattern in FORMS.items() if pattern.search(text)), BARE)


def response_changes(
    base: pd.DataFrame, others: Mapping[str, pd.DataFrame], *, base_name: str = "base"
) -> pd.DataFrame:
    """Compare each response with the base's to the same prompt: its length, and how it states its answer.

    Args:
        base: the unpruned model's responses: ``id``, ``response``; ``n_tokens``, ``finished`` where there.
        others: variant -> its responses to the same prompts.
        base_name: what to call the base; its own rows come first.

    Returns:
        variant, id, length and base_length (tokens where every frame has ``n_tokens``, else words), form (see
        ``answer_form``) and base_form, has_answer (a final answer can be read from it), same_answer (the same
        as the base's), same_text, finished (True where not known).

    Raises:
        ValueError: as ``response_similarity``.

    >>> base = pd.DataFrame({"id": [1], "response": ["The answer is 7."]})
    >>> changes = response_changes(base, {"pruned": base.assign(response="It is 7")})
    >>> changes[["variant", "length", "form", "same_answer"]].values.tolist()
    [['base', 4, 'the answer is 7', True], ['pruned', 3, 'a last number', True]]
    """
    base, paired = paired_responses(base, others)
    frames = {base_name: base, **paired}
    in_tokens = all("n_tokens" in frame for frame in frames.values())
    parts = {name: _described(frame, in_tokens) for name, frame in frames.items()}
    first = parts[base_name]
    for part in parts.values():
        part["base_length"], part["base_form"] = first["length"], first["form"]
        part["same_text"] = part["response"] == first["response"]
        pairs = zip(part["answer"], first["answer"], strict=True)
        part["same_answer"] = [same_answer(one, other) for one, other in pairs]
    rows = pd.concat(parts, names=["variant"]).reset_index("variant")
    return rows[["variant", "id", *_DESCRIBED, "finished"]].reset_index(drop=True)


def change_summary(changes: pd.DataFrame, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Sum up ``response_changes`` for each variant.

    Args:
        changes: frame of ``response_changes``.
        confidence: coverage of the interval, between 0 and 1.
        seed: of the resampling.

    Returns:
        variant, n, length_ratio (all its responses together against the base's; 1 = as long) with ci_low and
        ci_high (bootstrap over prompts), has_answer, same_form, same_answer (of those to which the base gives
        an answer; NaN where to none), same_text, cut_off (shares).

    Raises:
        ValueError: for missing columns or no rows.

    >>> base = pd.DataFrame({"id": [1, 2], "response": ["It is 7.", "It is 3."]})
    >>> changes = response_changes(base, {"pruned": base.assign(response=["It is 8.", "It is 3."])})
    >>> change_summary(changes)[["variant", "length_ratio", "same_answer"]].values.tolist()
    [['base', 1.0, 1.0], ['pruned', 1.0, 0.5]]
    """
    checked(changes, ["variant", *_DESCRIBED, "finished"], "changes")
    answered = changes["base_form"] != NO_ANSWER
    same_answer = changes["same_answer"].astype(float).where(answered)
    changes = changes.assign(same_form=changes["form"] == changes["base_form"], same_answer=same_answer)
    rows = []
    for name, part in changes.groupby("variant", sort=False):
        ratio, low, high = _length_ratio(part, confidence, seed)
        size = {"n": len(part), "length_ratio": ratio, "ci_low": low, "ci_high": high}
        shares = part[["has_answer", "same_form", "same_answer", "same_text"]].mean()
        rows.append({"variant": name, **size, **shares, "cut_off": 1 - part["finished"].mean()})
    return pd.DataFrame(rows)


def farthest_responses(
    similarities: pd.DataFrame, base: pd.DataFrame, others: Mapping[str, pd.DataFrame], *, n: int = 3
) -> pd.DataFrame:
    """Return each variant's ``n`` least similar responses beside the base's, to be read (``text_table``).

    Args:
        similarities: of ``response_similarity`` for these frames; what the encoder cannot read is left out.
        base: the base's responses: ``id``, ``response``, and ``instruction`` or ``prompt`` where there.
        others: variant -> its responses.
        n: how many of each variant, least similar first.

    Returns:
        variant, similarity, id, instruction (or prompt, where there), base response, response.

    Raises:
        ValueError: as ``response_similarity``; for ``n`` below 1.
    """
    base, paired = paired_responses(base, others)
    asked = [name for name in ("instruction", "prompt") if name in base][:1]
    sides = base[["id", *asked, "response"]].rename(columns={"response": "base response"})
    worst = seen(similarities).sort_values("similarity", kind="stable").groupby("variant", sort=False).head(n)
    parts = [
        worst[worst["variant"] == name][["variant", "similarity", "id"]]
        .merge(sides, on="id")
        .merge(frame[["id", "response"]], on="id")
        for name, frame in paired.items()
    ]
    return pd.concat(parts, ignore_index=True)


@reads(encoder_read, instead_of=("encoder",))
def embedding_map(
    base: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    *,
    base_name: str = "base",
    encoder: Any = "all-MiniLM-L6-v2",
    device: str | None = None,
) -> pd.DataFrame:
    """Lay all responses out in a plane: the two principal directions of their Sentence-BERT embeddings.

    Principal components have no free choice (no seed, no neighbourhood size), and the share of the variance
    that the plane holds says how far to trust it.

    Args:
        base: the unpruned model's responses: ``id``, ``response``.
        others: variant -> its responses to the same prompts.
        base_name: what to call the base.
        encoder: as for ``response_similarity``.
        device: where to encode.

    Returns:
        variant (the base first), id, x, y (in units of the embedding, whose vectors have length 1), x_share
        and y_share (explained variance, 0 to 1; the same in every row).

    Raises:
        ValueError: as ``response_similarity``.
    """
    base, paired = paired_responses(base, others)
    frames = {name: frame[["id", "response"]] for name, frame in {base_name: base, **paired}.items()}
    rows = pd.concat(frames, names=["variant"]).reset_index("variant").reset_index(drop=True)
    vectors = embed_texts(list(rows.pop("response")), encoder=encoder, device=device)
    points, shares = principal_plane(vectors)
    return rows.assign(x=points[:, 0], y=points[:, 1], x_share=shares[0], y_share=shares[1])


def principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``[n, 2]`` coordinates on the first two principal directions and their shares of the variance.

    The sign of a direction is free; scikit-learn takes the one whose largest entry is positive.

    >>> points, shares = principal_plane(np.array([[0.0, 1.0], [3.0, 1.0], [6.0, 1.0]]))
    >>> points[:, 0].tolist(), shares.tolist()
    ([-3.0, 0.0, 3.0], [1.0, 0.0])
    """
    from sklearn.decomposition import PCA

    points, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    if np.ptp(vectors, axis=0).any():
        plane = PCA(n := min(2, *vectors.shape), svd_solver="full")
        points[:, :n] = plane.fit_transform(vectors)
        shares[:n] = plane.explained_variance_ratio_
    return points, shares


def _described(frame: pd.DataFrame, in_tokens: bool) -> pd.DataFrame:
    texts = frame["response"]
    answers = [final_answer(text) for text in texts]
    return frame[["id", "response"]].assign(
        length=frame["n_tokens"] if in_tokens else texts.str.split().str.len(),
        form=[answer_form(text) for text in texts],
        answer=[answer or "" for answer in answers],
        has_answer=[answer is not None for answer in answers],
        finished=finished(frame),
    )


def _length_ratio(part: pd.DataFrame, confidence: float, seed: int) -> tuple[float, float, float]:
    """Return the ratio of total lengths with its interval; prompts are resampled, so both sums move."""
    base, own = part["base_length"].to_numpy(float), part["length"].to_numpy(float)
    told = base > 0  # against an empty response there is no ratio
    if not told.any():
        return np.nan, np.nan, np.nan
    ratios = own[told] / base[told]
    low, high = bootstrap_interval(ratios, weights=base[told], confidence=confidence, seed=seed)
    return float(np.average(ratios, weights=base[told])), max(low, 0.0), high  # NaN stays


def divergence_by_response(tokens: pd.DataFrame) -> pd.DataFrame:
    """Sum up each response: mean KL over its tokens, and how long both models agree.

    Args:
        tokens: from ``token_divergence``.

    Returns:
        variant, id, kl (mean, nats per token), largest (the largest of its tokens), same_choice (share of
        tokens at which both models choose alike), agrees_for (tokens before the first other choice),
        n_tokens.

    Raises:
        ValueError: for missing columns or no rows.

    >>> tokens = pd.DataFrame({"variant": "pruned", "id": 1, "position": [0, 1], "kl": [0.0, 0.5]})
    >>> divergence_by_response(tokens.assign(same_choice=[True, False]))[["kl", "agrees_for"]].values.tolist()
    [[0.25, 1.0]]
    """
    checked(tokens, ["variant", "id", "position", "kl", "same_choice"], "tokens")
    tokens = tokens.sort_values("position", kind="stable")
    agreeing = tokens.groupby(["variant", "id"], sort=False)["same_choice"].cummin().astype(int)
    rows = tokens.assign(agreeing=agreeing).groupby(["variant", "id"], sort=False)
    of_kl = {"kl": ("kl", "mean"), "largest": ("kl", "max")}
    agreed = {"same_choice": ("same_choice", "mean"), "agrees_for": ("agreeing", "sum")}
    found = rows.agg(**of_kl, **agreed, n_tokens=("kl", "size")).reset_index()
    found.attrs = dict(tokens.attrs)
    return found
