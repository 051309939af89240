"""Bad input for every public function: `make attack` prints what each row of the table below comes to.

A call that works is made for each function; then one argument at a time is replaced by every bad value that
its kind or its name has in `BAD`. A row ends as

- ``refused``: a ValueError of one line, raised by the workbench itself;
- ``served``: the value is fine for this argument, and `FINE` says why;
- ``silent``: something came back for a bad value;
- ``library``: an error of another library, or of Python, reached the caller;
- ``hang``: nothing came back in time.

The last three must be 0, and every good call must work. Arguments of the command line are the names to try.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"  # a name that is nowhere here is looked for nowhere else

import workbench as wb  # noqa: E402
from benchmarks import attack_calls  # noqa: E402
from benchmarks.attack_calls import ODD  # noqa: E402
from benchmarks.measuring import commit, write_record  # noqa: E402
from tests.tiny import tiny_model  # noqa: E402

SECONDS, WAITS = 20, 200  # of the processor; on the clock, which other work on the machine slows down
#: what changes its model for good: each row gets one of its own
MADE_ANEW = ("prune_", "collapse_")
HERE = Path(tempfile.mkdtemp(prefix="attack-"))
NAN = math.nan
LONG = "x" * 5000
SURROGATE = "a\ud800b"


COUNTS: list[Any] = [0, -1, 1.5, "3", True, NAN, ODD]  # where a whole number of at least 1 is wanted
SEEDS: list[Any] = [-1, 1.5, "0", NAN, 2**70, ODD]
SHARES: list[Any] = [0, 1, 5, -0.5, "95", NAN, None, ODD]
TEXTS: list[Any] = [None, 5, "one text", [], [None], [""], ["  "], [5.5], {"a": 1}, [["a"]], [SURROGATE], ODD]
FRAMES: list[Any] = [None, 5, "frame", [], {}, pd.DataFrame(), pd.DataFrame({"x": [1]}), ODD]
MAPPINGS: list[Any] = [None, 5, "frames", {}, {"a": None}, {"a": pd.DataFrame()}, ODD]
SIZES: list[Any] = [5, "12", [0], [-1], [99], [1.5], ["2"], [None], [], [True], ODD]
LAYERS: list[Any] = [5, "34", [-1], [99], [1.5], ["3"], [None], [True], list(range(99)), None, ODD]
PATHS: list[Any] = [5, "", "a\0b", "x" * 300 + ".jsonl", "/proc/none/x.jsonl", "/dev/null/x.csv", ODD]
WORDS: list[Any] = ["no such", "", 5, ODD]
FLAGS: list[Any] = ["yes", 5, ODD]

BAD: dict[str, list[Any]] = {
    "model": [None, 5, "demo", torch.nn.Linear(2, 2), ODD],
    "model_or_config": [None, 5, torch.nn.Linear(2, 2), ODD],
    "tokenizer": [5, "demo", ODD],
    "texts": TEXTS,
    "prompts": TEXTS,
    "layers": LAYERS,
    "removed": LAYERS[:-2],
    "layer_sets": [5, "34", [5], [[99]], [["a"]], [[]], ODD],
    "sizes": SIZES,
    "size": COUNTS,
    "start": [-1, 1.5, "3", 10**6, NAN, ODD],
    "n_layers": [0, 1, -5, "7", 2.5, NAN, ODD],
    "context": [*COUNTS],
    "seed": SEEDS,
    "confidence": SHARES,
    "level": SHARES,
    "sure": SHARES,
    "share": SHARES,
    "overlap": ["a", -1, NAN, ODD],
    "temperature": [-1, "0", NAN, math.inf, None, ODD],
    "position": ["first", 10**6, -(10**6), 1.5, None, ODD],
    "engine": WORDS,
    "response": WORDS,
    "column": WORDS,
    "split": ["no such", 5, ODD],
    "preset": WORDS,
    "rule": ["strict", 5, ODD],
    "template": ["text", 5, wb.RewriteTemplate(math="no fields"), ODD],
    "config": ["sdd", 5, {}, ODD],
    "tasks": [None, 5, "no_such_task", [], [""], [None], ["demo_math", "no_such_task"], ODD],
    "limit": [0, -1, 1.5, "5", True, NAN, ODD],
    "n_shot": [-1, 1.5, "0", True, ODD],
    "shots": [5, [-1], ["a"], [], [True], ODD],
    "orders": COUNTS,
    "shot_order": SEEDS,
    "missing": WORDS,
    "include": ["/no/such/folder", 5, ODD],
    "data": ["/no/such/folder", 5, ODD],
    "corpus": WORDS,
    "items": PATHS,
    "out": PATHS,
    "path": PATHS,
    "folder": PATHS,
    "plan": [*PATHS, "/no/such/plan"],
    "location": ["/no/such/folder", 5, ODD],
    "run": [5, "no/../x", ODD],
    "formats": ["gif", 5, ["bmp"], [], ODD],
    "scale": [0, -1, "2", NAN, ODD],
    "dtype": ["int8", 5, torch.int8, ODD],
    "device": ["gpu", "cuda:9", "mps", "meta", ODD],
    "quantization": ["int3", 5, ODD],
    "revision": ["main", 5],
    "encoder": ["no-such-encoder", 5, None, ODD],
    "grid": [5, "rank", {"no_such": [1]}, {"rank": []}, {"rank": 5}, {"rank": ["a"]}, ODD],
    "search": WORDS,
    "n_trials": [0, -1, 1.5, "3", True, ODD],
    "held_out": [None, 5, [], pd.DataFrame(), ODD],
    "trust_remote_code": FLAGS,
    "keep_last": FLAGS,
    "metric": ["no such", 5, ODD],
    "by": ["no such", 5, ODD],
    "base": ["nobody", 5, ODD],
    "over": ["no such", 5, ODD],
    "prefer": ["no such", 5, ODD],
    "strategy": [5, ODD],
    "shade": WORDS,
    "group": [-1, 1.5, "2", ODD],
    "digits": [-1, 1.5, "3", ODD],
    "columns": [0, -1, 1.5, "3", ODD],
    "value": WORDS,
    "smooth": [0, -1, "3", 1.5, ODD],
    "chosen": [5, "3", (1,), (99, 2), (1, 99), ("a", 1), ODD],
    "zmin": ["0", NAN, ODD],
    "zmax": ["1", NAN, ODD],
    "values": [None, [], "abc", [NAN], ["a"], ODD],
    "first": [None, [], "abc", ["a"], ODD],
    "weights": [[], "abc", [NAN] * 4, [-1] * 4, [0] * 4, ODD],
    "machines": COUNTS,
    "processes": COUNTS,
    "variants": [None, 5, [5], ["base"], [], ODD],
    "variant": [None, 5, "base", ODD],
    "name": [None, 5, "", "../x", "a/b/c", "no such", ODD],
    "fig": [None, 5, "figure", ODD],
    "text": [5, ODD],
    "instruction": [None, 5, ODD],
    "row": [None, 5, {}, {"instruction": 5}, ODD],
    "groups": [None, 5, {}, {"a": None}, {"a": ["no such"]}, ODD],
    "overwrite": FLAGS,
}
for _count in (
    "batch_size",
    "max_length",
    "max_new_tokens",
    "max_tokens",
    "n_resamples",
    "n_draws",
    "n_words",
    "n",
):
    BAD[_count] = COUNTS
for _frame in ("n_texts", "n_items"):
    BAD[_frame] = COUNTS

#: rows whose bad value is good after all: (function or *, argument, value as it prints) -> why
FINE: dict[tuple[str, str, str], str] = {
    ("*", "seed", str(2**70)): "NumPy takes seeds of any size",
    ("*", "sizes", "[]"): "no size, no row",
    ("*", "removed", "None"): "nothing removed",
    ("*", "savings", "None"): "savings are left out",
    ("*", "similarities", "None"): "similarity is left out",
    ("*", "smooth", "None"): "the default",
    ("as_variant", "run", "'no/../x'"): "a variant without an adapter needs no run",
    ("block_savings", "sizes", "5"): "one size may stand alone",
    ("check_contamination", "evaluation", "item as text"): "items may have names",
    ("check_prunable", "layers", "None"): "asks whether any layer can go",
    ("comparison_reading", "comparisons", "no rows"): "says that there are none",
    ("flips_reading", "flips", "no rows"): "nothing to say",
    ("final_answer", "text", "5"): "a number is its own answer",
    ("final_answer", "text", "Odd()"): "what is no text states no answer",
    ("format_layers", "layers", "[99]"): "names no model that it could be too deep for",
    ("layers_of", "start", "1000000"): "names no model that it could be too deep for",
    ("end_token_reading", "distances", "frame['x']"): "says that it is not known",
    ("render_chat", "template", "'text'"): "a template may be plain text",
    ("user_message", "context", "'3'"): "a context may be any text",
    ("embed_texts", "texts", "['']"): "an empty response has an embedding",
    ("embed_texts", "texts", "['  ']"): "an empty response has an embedding",
    ("Variant", "model", "'demo'"): "a name",
    ("score_spread", "scores", "seed as text"): "what a spread is over may have names",
    ("tuning_figure", "trials", "trial as text"): "trials may have names",
    ("tuning_figure", "trials", "rank as text"): "a setting may be words, as targets are",
    ("Variant", "removed", "[99]"): "loads no model that it could be too deep for",
    ("plan_training", "model", "'demo'"): "a name",
    ("plan_training", "layers", "[99]"): "loads no model; run_plan refuses it",
    ("plan_training", "revision", "'main'"): "loads no model; run_plan refuses it",
    ("launch_command", "plan", "'/no/such/plan'"): "a plan may lie on the machine that will run it",
    ("launch_command", "plan", "'/proc/none/x.jsonl'"): "a plan may lie on the machine that will run it",
    ("launch_command", "plan", "'/dev/null/x.csv'"): "a plan may lie on the machine that will run it",
    ("load_model", "revision", "None"): "the default",
}
for _function in ("format_layers", "plan_training", "Variant"):
    _argument = "removed" if _function == "Variant" else "layers"
    FINE[_function, _argument, f"{str(list(range(99)))[:57]}..."] = (
        "loads no model that it could be too deep for"
    )
for _function in ("text_table", "to_html", "to_latex", "to_markdown"):
    _argument = "frame" if _function == "text_table" else "table"
    for _what in ("frame[]", "frame['x']", "no rows"):
        FINE[_function, _argument, _what] = "any frame can be shown"
for _argument in ("a", "b"):
    for _what in ("None", "5", "'no such'", "''"):
        FINE["same_number", _argument, _what] = "what says no number is the same as none"
for _what in ("'no_such_task'", "['']", "['demo_math', 'no_such_task']"):
    FINE["task_fingerprint", "tasks", _what] = "digests what is there; evaluate refuses the name"
FINE["task_fingerprint", "data", "'/no/such/folder'"] = "digests what is there; evaluate refuses the folder"


def spoiled_frames(frame: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    """Yield a good frame spoiled in every way: no row, a column gone, a value that is none of its kind."""
    yield "no rows", frame[:0]
    for column in frame.columns:
        yield f"without {column}", frame.drop(columns=column)
    for column in frame.columns:
        if pd.api.types.is_numeric_dtype(frame[column]):
            yield f"{column} as text", frame.assign(**{column: "many"})


def bad_values(name: str, good: Any) -> Iterator[tuple[str, Any]]:
    """Yield the bad values of an argument: those of its name, and those of the kind of its good value."""
    if isinstance(good, pd.DataFrame):
        yield from ((short(value), value) for value in FRAMES)
        yield from spoiled_frames(good)
    elif isinstance(good, Mapping) and good and isinstance(next(iter(good.values())), pd.DataFrame):
        yield from ((short(value), value) for value in MAPPINGS)
        key = next(iter(good))
        yield from ((f"{key}: {what}", {**good, key: value}) for what, value in spoiled_frames(good[key]))
    else:
        yield from ((short(value), value) for value in BAD.get(name, []))


def short(value: Any) -> str:
    """Return a value as the table prints it."""
    if isinstance(value, pd.DataFrame):
        return f"frame{list(value.columns)}"
    text = repr(value) if isinstance(value, str) else str(value)
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) < 60 else f"{text[:57]}..."


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Raise TimeoutError when the body computes longer than SECONDS, or waits longer than WAITS."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"nothing after {SECONDS} s")

    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WAITS)}
    before = {number: signal.signal(number, stop) for number in clocks}
    for clock, seconds in clocks.values():
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for number, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])


def call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call, and enter what comes back when it is a context manager."""
    result = function(**arguments)
    if hasattr(result, "__enter__") and not isinstance(result, pd.DataFrame):
        with result as inside:
            return inside
    return result


def outcome(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a call comes to, and the words."""
    try:
        with in_time(), warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            result = call(function, arguments)
        return "silent", short(result)
    except TimeoutError as error:
        return "hang", str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        words = f"{type(error).__name__}: {error}"
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = isinstance(error, ValueError) and type(error).__module__.split(".")[0] in (
            "builtins",
            "workbench",
        )
        said = str(ROOT / "workbench") in last.filename and str(last.line).lstrip().startswith("raise ")
        clear = ours and said and "\n" not in str(error)  # said, and not Python's own words within our code
        return "refused" if clear else "library", words


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what calls print off the table."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def good_calls() -> dict[str, dict[str, Any]]:
    """Return arguments that work for each public function, from a tiny model run through the workbench."""
    tokenizer = wb.load_model("demo")[1]
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=512, bos_token_id=None)
    mt = {"model": model, "tokenizer": tokenizer}
    texts = list(wb.load_texts("demo-stories", n=12))
    examples = wb.load_instructions("demo-math", n=12)
    few = {"batch_size": 4, "progress": False}
    angles = wb.block_angles(**mt, texts=texts, **few, max_length=64)
    distances = wb.mean_distances(angles)
    damage = wb.block_damage(**mt, texts=texts[:4], sizes=[1, 2], progress=False)
    influence = wb.block_influence(**mt, texts=texts, **few)
    savings = wb.block_savings(model)
    distilled = examples.assign(rewrite="The answer is 5.", kept=False, reason="empty")
    distilled = distilled.assign(response=distilled["reference"])
    config = wb.HealingConfig(rank=2, max_steps=2, batch_size=4, learning_rate=1e-3)
    healed = wb.heal(**mt, examples=distilled, config=config, out=HERE / "adapter", progress=False)
    run = wb.open_run("attack", root=HERE / "runs")
    base, pruned = wb.Variant("base", "tiny"), wb.Variant("pruned", "tiny", removed=(2, 3))
    tasks = ["demo_pairs", "demo_yes_no"]
    found = wb.evaluate_variants(
        **mt, variants=[base, pruned], tasks=tasks, run=run, limit=12, progress=False
    )
    scores, items = found.scores, {name: found.of(name) for name in ("base", "pruned")}
    asked = {"prompts": [f"<|user|>{text}<|end|><|assistant|>" for text in examples["instruction"][:6]]}
    responses = {"base": wb.respond(**mt, asked=examples, max_new_tokens=6, **few)}
    with wb.without_layers(model, [2, 3]):
        responses["pruned"] = wb.respond(**mt, asked=examples, max_new_tokens=6, **few)
    of = {"base": responses["base"], "others": {"pruned": responses["pruned"]}}
    similarity = wb.response_similarity(of["base"], of["others"])
    changes = wb.response_changes(**of)
    tokens = wb.token_divergence(**mt, responses=of["base"], variants=[pruned], progress=False)
    lost = wb.loss_against_similarity(items["base"], {"pruned": items["pruned"]})
    flips = wb.flip_counts(items["base"], {"pruned": items["pruned"]})
    trials = pd.DataFrame(
        {"trial": [0, 1], "state": "COMPLETE", "rank": [2, 4], "loss": [1.5, 1.4], "seconds": 1.0}
    )
    depth = wb.scores_by_depth(
        **mt, blocks=wb.best_blocks(distances, [1, 2]), tasks=["demo_pairs"], limit=8, progress=False
    )
    some = {"position": "random", "points_per_text": 2, "max_length": 64}
    points = wb.block_angles(**mt, texts=texts, **few, **some)
    loss_depth = wb.scores_by_depth(
        **mt, blocks=wb.best_blocks(distances, [1, 2]), texts=texts[:4], limit=8, progress=False
    )
    ablation = wb.calibration_ablation({"stories": distances, "again": distances}, [1, 2])
    log = healed.log.assign(variant="pruned")
    summary = wb.summary_table(scores, {"language": ["demo_pairs"]}, similarities=similarity)
    notes = wb.variant_notes([base, pruned], wb.parameter_counts(model))
    looks = pd.DataFrame(
        {"start": [2, 1], "size": 2, "removed": ["2-3", "1-2"], "loss": [5.0, 6.0], "base_loss": 4.0}
    )
    looks = looks.assign(damage=looks["loss"] - looks["base_loss"], chosen=[True, False])
    table = scores[["variant", "task", "value"]]
    plan = {
        "folder": HERE / "plan",
        "model": "demo",
        "examples": distilled,
        "out": HERE / "plan" / "adapter",
        "layers": [2],
        "config": config,
    }
    wb.plan_training(**plan)
    ready = wb.plan_training(**plan | {"folder": HERE / "ready", "out": HERE / "ready" / "adapter"})
    wb.evaluate(**mt, tasks=tasks, limit=4, items=HERE / "items.jsonl", progress=False)
    sets = {
        "examples": distilled[:8],
        "held_out": distilled[8:],
        "out": HERE / "tuned",
        "grid": {"rank": [2]},
    }
    wb.tune(**mt, **sets, response="reference", config=config, progress=False)
    figure = wb.distance_heatmap(distances)
    compared = wb.compare_items(items["base"], items["pruned"]).assign(variant="pruned")
    contamination = {"examples": examples, "evaluation": wb.evaluation_prompts(["demo_math"])}
    measured = mt | {"texts": texts[:4], "progress": False}
    return attack_calls.more_calls(HERE, locals()) | {
        "about": {"model": model},
        "agreement_reading": {"agreement": wb.rank_agreement({"a": distances, "b": influence})},
        "end_point_reading": {"angles": angles, "points": points, "sizes": [1, 2]},
        "end_token_reading": {"distances": distances},
        "export_chat": {"distilled": distilled, "path": HERE / "chat.jsonl"},
        "holm": {"p_values": [0.01, 0.5]},
        "iterabre_table": {"scores": scores, "notes": notes.assign(model="m", approach="Direct", layers=5)},
        "kept_shares": {"distilled": distilled},
        "least_harmful": measured | {"sizes": [1], "seed": 0},
        "loss_vs_fraction": {"scores": loss_depth},
        "angular_distances": measured
        | {"max_length": 64, "batch_size": 4, "position": "last", "confidence": 0.95, "seed": 0},
        "answer_forms": {"changes": changes},
        "as_variant": {"model": model, "variant": pruned, "run": run},
        "at_fractions": {"scores": scores, "variants": [base, pruned], "n_layers": 7},
        "average_recovery": {"scores": scores, "base": "base"},
        "best_blocks": {"distances": distances, "sizes": [1, 2]},
        "block_angles": measured | {"max_length": 64, "batch_size": 4, "position": "last"},
        "block_damage": measured
        | {"sizes": [1], "max_length": 64, "max_tokens": 512, "confidence": 0.95, "seed": 0},
        "block_influence": measured | {"max_length": 64, "batch_size": 4, "confidence": 0.95, "seed": 0},
        "block_reading": {"distances": distances, "start": 2, "size": 2, "savings": savings},
        "block_savings": {"model_or_config": model, "sizes": [1], "context": 16},
        "bootstrap_interval": {
            "values": [1.0, 2, 3, 4],
            "weights": [1.0, 1, 1, 2],
            "confidence": 0.9,
            "n_resamples": 50,
            "seed": 0,
        },
        "calibration_ablation": {"distances": {"stories": distances, "again": distances}, "sizes": [1, 2]},
        "calibration_comparison": {"ablation": ablation, "sizes": [1, 2], "n_layers": 7},
        "calibration_table": {"ablation": ablation},
        "category_bars": {"categories": wb.category_scores(scores)},
        "category_scores": {"scores": scores},
        "change_summary": {"changes": changes, "confidence": 0.95, "seed": 0},
        "chat_prompt": {"tokenizer": tokenizer, "text": "Who?", "system": "Be brief."},
        "check_contamination": contamination | {"column": "instruction", "n_words": 13},
        "check_prunable": {"model": model, "layers": [2]},
        "closest_reading": {"similarity": similarity},
        "compare_items": {
            "base": items["base"],
            "other": items["pruned"],
            "metric": None,
            "confidence": 0.95,
            "seed": 0,
        },
        "comparison_reading": {"comparisons": compared, "level": 0.05},
        "contamination_summary": {"found": wb.check_contamination(**contamination), "overlap": 0.5},
        "corpus_perplexity": mt
        | {
            "corpus": "wikitext2",
            "data": ROOT.parent / "shared" / "data",
            "n": 1,
            "max_length": 64,
            "batch_size": 4,
            "seed": 0,
            "progress": False,
        },
        "damage_heatmap": {"damage": damage, "zmax": 1.0},
        "damage_reading": {"distances": distances, "damage": damage, "sizes": [1, 2]},
        "decoder_layers": {"model": model},
        "deepest_blocks": {"n_layers": 7, "sizes": [1, 2], "keep_last": True},
        "depth_reading": {"depth": depth, "share": 0.9},
        "describe_model": {"model": model},
        "distance_beside_damage": {"distances": distances, "damage": damage},
        "distance_heatmap": {"distances": distances, "chosen": (2, 2), "zmin": 0.0, "zmax": 1.0},
        "distance_lines": {"distances": distances, "sizes": [1, 2]},
        "distance_vs_damage": {"distances": distances, "damage": damage, "sizes": [1, 2]},
        "distillation_reading": {"distilled": distilled},
        "divergence_by_response": {"tokens": tokens},
        "divergence_distribution": {"by_response": wb.divergence_by_response(tokens)},
        "divergence_reading": {"by_response": wb.divergence_by_response(tokens)},
        "embed_texts": {"texts": texts[:2], "encoder": "all-MiniLM-L6-v2", "device": None},
        "embedding_map": of | {"encoder": "all-MiniLM-L6-v2"},
        "evaluate": mt
        | {
            "tasks": ["demo_pairs"],
            "limit": 4,
            "n_shot": None,
            "batch_size": 4,
            "max_length": None,
            "items": None,
            "include": None,
            "data": None,
            "missing": "error",
            "seed": 1234,
            "shot_order": 0,
            "progress": False,
        },
        "evaluate_variants": mt
        | {"variants": [base], "tasks": ["demo_pairs"], "run": run, "limit": 4, "progress": False},
        "evaluation_prompts": {"tasks": ["demo_pairs"], "include": None, "data": None},
        "farthest_responses": of | {"similarities": similarity, "n": 2},
        "final_answer": {"text": "It is 4."},
        "conversation": {"row": {"id": "a", "instruction": "Who?", "context": "A tale."}},
        "flip_bars": {"flips": flips},
        "flip_counts": {"base": items["base"], "others": {"pruned": items["pruned"]}},
        "flip_examples": {"base": items["base"], "others": {"pruned": items["pruned"]}},
        "flips": {"base": items["base"], "other": items["pruned"], "metric": None},
        "flips_reading": {"flips": flips},
        "format_layers": {"layers": [2, 3]},
        "generate_responses": mt
        | asked
        | {
            "max_new_tokens": 4,
            "batch_size": 4,
            "temperature": 0.0,
            "seed": 0,
            "engine": "auto",
            "out": None,
            "overwrite": False,
            "progress": False,
        },
        "greedy_layers": {"score": influence, "sizes": [1, 2], "strategy": None},
        "headline": {"scores": scores, "prefer": None},
        "heal": mt
        | {
            "examples": distilled,
            "response": "reference",
            "config": config,
            "out": HERE / "adapter",
            "overwrite": False,
            "progress": False,
        },
        "kept_layers": {"model": model},
        "kept_reasons": {"distilled": distilled},
        "launch_command": {"plan": HERE / "plan", "processes": 2, "machines": 1},
        "layers_of": {"start": 2, "size": 2},
        "load_instructions": {
            "name": "demo-math",
            "n": 2,
            "seed": 0,
            "skip": 0,
            "system": None,
            "columns": None,
            "split": "train",
            "location": None,
        },
        "load_model": {
            "name": "demo",
            "revision": None,
            "dtype": None,
            "device": None,
            "quantization": None,
            "trust_remote_code": False,
        },
        "load_texts": {
            "name": "demo",
            "n": 2,
            "seed": 0,
            "skip": 0,
            "min_length": 0,
            "column": "text",
            "split": "train",
            "location": None,
        },
        "look_reading": {
            "seen": {"removed": "2-3", "loss": 5.0, "base_loss": 4.0, "text": "a", "base_text": "b"},
            "n_texts": 4,
        },
        "looking": mt | {"texts": texts[:2], "prompt": "Who?", "max_length": 64, "max_new_tokens": 4},
        "looks_reading": {"looks": looks, "n_texts": 4},
        "lora_targets": {"model": model, "targets": "all-linear"},
        "loss_against_similarity": {
            "base": items["base"],
            "others": {"pruned": items["pruned"]},
            "encoder": "all-MiniLM-L6-v2",
        },
        "loss_curve": {"log": log, "value": "loss", "smooth": None},
        "loss_similarity": {"losses": lost},
        "mean_distances": {"angles": angles, "confidence": 0.95, "seed": 0},
        "merge_adapter_": {"model": model, "path": HERE / "adapter"},
        "metric_comparison": {"metrics": {"angular distance": distances, "block influence": influence}},
        "number_of_layers": {"model": model},
        "open_run": {"name": "attack", "root": HERE / "runs"},
        "paired_difference": {
            "first": [1.0, 0, 1, 1],
            "second": [1.0, 1, 0, 1],
            "confidence": 0.95,
            "n_resamples": 50,
            "seed": 0,
        },
        "paired_items": {"base": items["base"], "other": items["pruned"], "metric": None},
        "parameter_counts": {"model_or_config": model},
        "perplexity": measured | {"task": "texts", "max_length": 64, "batch_size": 4},
        "pick_stability": {"angles": angles, "sizes": [1, 2], "n_resamples": 50, "seed": 0},
        "plan_training": plan
        | {"response": "reference", "revision": None, "dtype": None, "quantization": None},
        "prune_": {"model": None, "layers": [2]},
        "random_layers": {"n_layers": 7, "sizes": [2], "n_draws": 2, "seed": 0},
        "rank_agreement": {
            "metrics": {"angular distance": distances, "block influence": influence},
            "by": None,
            "confidence": 0.95,
        },
        "read_items": {"path": HERE / "items.jsonl"},
        "read_trials": {"out": HERE / "tuned"},
        "recovery_reading": {"scores": scores, "base": "base"},
        "recovery_table": {"scores": scores, "base": "base"},
        "removal_cost": {"frame": damage},
        "removal_similarity": measured
        | {"removed": (), "max_length": 64, "max_tokens": 512, "confidence": 0.95, "seed": 0},
        "removal_strategies": {"distances": distances, "sizes": [1, 2], "n_draws": 1, "seed": 0},
        "respond": mt | {"asked": examples[:2], "max_new_tokens": 4, "progress": False},
        "render_chat": {
            "tokenizer": tokenizer,
            "turns": [{"role": "user", "content": "Who?"}],
            "thinking": False,
            "generation_prompt": True,
            "template": None,
        },
        "response_changes": of,
        "response_loss": mt
        | {"examples": distilled, "response": "reference", "max_length": 256, "batch_size": 4},
        "response_room": mt | {"references": ["It is 4."], "longest_prompt": 3},
        "response_similarity": {"base": of["base"], "other": of["others"], "encoder": "all-MiniLM-L6-v2"},
        "rewrite_message": {"template": wb.RewriteTemplate(), "row": examples.iloc[0].to_dict()},
        "rewrite_template": {"model": model},
        "run_plan": {"plan": ready, "overwrite": False, "progress": False},
        "same_number": {"a": "1", "b": "2"},
        "save_figure": {"fig": figure, "path": HERE / "figure", "formats": ["csv"], "scale": 1},
        "save_pruned": mt | {"path": HERE / "saved"},
        "score_bars": {"scores": scores},
        "score_spread": {"scores": scores[scores["variant"] == "base"].assign(seed=0), "over": "seed"},
        "score_vs_fraction": {"scores": depth},
        "scores_by_depth": mt
        | {
            "blocks": wb.best_blocks(distances, [1]),
            "tasks": ["demo_pairs"],
            "limit": 4,
            "batch_size": 4,
            "progress": False,
        },
        "sdd_table": {"scores": scores, "notes": notes, "base": "base"},
        "self_distill": mt
        | {
            "examples": examples,
            "out": None,
            "rule": "auto",
            "template": None,
            "max_new_tokens": 4,
            "batch_size": 4,
            "temperature": 0.0,
            "seed": 0,
            "engine": "auto",
            "progress": False,
        },
        "shallowest_blocks": {"n_layers": 7, "sizes": [1, 2]},
        "shift_agreement": {"losses": lost, "confidence": 0.95, "seed": 0},
        "shift_reading": {"losses": lost},
        "shot_ablation": mt
        | {"tasks": ["demo_pairs"], "shots": (0,), "orders": 1, "limit": 4, "progress": False},
        "similarity_distribution": {"similarities": similarity},
        "similarity_map": {"points": wb.embedding_map(**of), "base": "base"},
        "similarity_pairs": {"similarities": similarity},
        "similarity_reading": {"similarity": similarity},
        "similarity_summary": {"similarities": similarity, "confidence": 0.95, "seed": 0},
        "stability_reading": {"stability": wb.pick_stability(angles, [1, 2]), "sure": 0.9},
        "summary_reading": {"summary": summary, "n": 12, "base": "base"},
        "summary_table": {
            "scores": scores,
            "groups": {"language": ["demo_pairs"]},
            "similarities": similarity,
        },
        "task_categories": {"scores": scores},
        "task_fingerprint": {"tasks": ["demo_pairs"], "include": None, "data": None},
        "text_table": {"frame": table, "digits": 3},
        "to_html": {"table": table, "digits": 3},
        "to_latex": {"table": table, "digits": 3, "group": 0},
        "to_markdown": {"table": table, "digits": 3},
        "token_divergence": mt
        | {"responses": of["base"], "variants": [pruned], "max_tokens": 4096, "progress": False},
        "token_view": {"tokens": tokens, "id": tokens["id"].iloc[0], "shade": "kl"},
        "training_table": {"log": log},
        "tune": mt
        | {
            "examples": distilled[:8],
            "held_out": distilled[8:],
            "out": HERE / "tuning",
            "response": "reference",
            "grid": {"rank": [2]},
            "config": config,
            "search": "grid",
            "n_trials": None,
            "seed": 0,
            "progress": False,
        },
        "tuning_figure": {"trials": trials},
        "tuning_reading": {"trials": trials},
        "use_template": {"name": "screen"},
        "user_message": {"instruction": "Who?", "context": ""},
        "variant_notes": {"variants": [base, pruned], "parameters": wb.parameter_counts(model)},
        "with_adapter": {"model": model, "path": HERE / "adapter"},
        "without_layers": {"model": model, "layers": [2]},
        "HealingConfig": {f.name: f.default for f in __import__("dataclasses").fields(wb.HealingConfig)},
        "Variant": {"name": "a", "model": "demo", "removed": (2,), "adapter": None},
        "BlockPicker": {"distances": distances, "savings": savings, "start": 2, "size": 2},
    }


CONFIG_VALUES: dict[str, list[Any]] = {
    "rank": COUNTS,
    "alpha": [0, -5, NAN, "16", ODD],
    "dropout": [1.0, -0.1, NAN, "0", ODD],
    "targets": [[], 5, "attn", [5], ODD],
    "learning_rate": [0, -1, NAN, "1e-4", math.inf, ODD],
    "epochs": [0, -1, NAN, "3", ODD],
    "max_steps": COUNTS,
    "micro_batch_size": [*COUNTS, 3],
    "warmup_steps": [-5, 1.5, "3", True, ODD],
    "schedule": ["cos", 5, ODD],
    "weight_decay": [-1, NAN, "0", ODD],
    "max_grad_norm": [-1, NAN, "1", ODD],
    "packing": FLAGS,
    "gradient_checkpointing": ["yes", 5, ODD],
    "deterministic": FLAGS,
}


def function_of(name: str) -> Callable[..., Any]:
    """Return what is tried under a name of the table."""
    method = attack_calls.METHODS.get(name)
    return method or getattr(wb, name)  # type: ignore[no-any-return]


def rows(calls: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield function, argument, bad value as it prints, and the arguments of the call."""
    for name, good in calls.items():
        for argument, value in good.items():
            own = attack_calls.OWN.get((name, argument), attack_calls.OWN.get(("*", argument)))
            values = bad_values(argument, value)
            if own is not None and not isinstance(value, pd.DataFrame):
                values = ((short(bad), bad) for bad in own)
            if name == "HealingConfig" and argument in CONFIG_VALUES:
                values = ((short(bad), bad) for bad in CONFIG_VALUES[argument])
            for what, bad in values:
                yield name, argument, what, {**good, argument: bad}


def _of_no_use(name: str, argument: str, what: str, needed: set[tuple[str, str, str]]) -> bool:
    return what.endswith(" as text") and (name, argument, what.removesuffix(" as text")) not in needed


def attacked(
    name: str, arguments: list[tuple[str, str, dict[str, Any]]], show: bool
) -> Iterator[tuple[str, str]]:
    """Yield what each row of a function comes to, and print those that are not as they should be."""
    needed: set[tuple[str, str, str]] = set()
    fine = FINE | attack_calls.FINE
    for argument, what, given in arguments:
        if name in MADE_ANEW and given["model"] is None and argument != "model":
            given = given | {"model": tiny_model("llama")}
        kind, words = outcome(function_of(name), given)
        spoiled = what.rpartition(": ")[2]
        if kind == "refused" and spoiled.startswith("without "):
            needed.add((name, argument, what.replace("without ", "")))
        elif kind == "silent" and (
            spoiled.startswith("without ") or _of_no_use(name, argument, what, needed)
        ):
            kind = "served"  # a column that the function does not look at
        if kind == "silent" and ((name, argument, what) in fine or ("*", argument, what) in fine):
            kind = "served"
        if kind not in ("refused", "served") or show:
            print(f"{kind:8} {name}({argument}={what}): {words[:160]}", flush=True)
        yield kind, f"{name}({argument}={what}): {words[:160]}"


def of_function(name: str, good: dict[str, Any], show: bool) -> dict[str, Any]:
    """Return what the rows of one function come to, in numbers; those that must not be, in words."""
    began = time.perf_counter()
    works, words = outcome(
        function_of(name), good | ({"model": tiny_model("llama")} if name in MADE_ANEW else {})
    )
    if works != "silent":
        print(f"the good call of {name} does not work: {words[:300]}", flush=True)
    found = [*attacked(name, [row[1:] for row in rows({name: good})], show)]
    wrong = [f"{kind} {said}" for kind, said in found if kind not in ("refused", "served")]
    told = {"function": name, "rows": dict(Counter(kind for kind, _ in found)), "wrong": wrong}
    return told | {
        "works": works == "silent",
        "seconds": round(time.perf_counter() - began, 1),
        "commit": commit(),
    }


def main() -> int:
    """Try every row, print those that are not refused, and the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--journal", type=Path, help="what is done, by function; a second start goes on from it"
    )
    parser.add_argument("only", nargs="*", help="functions; default all, which writes a record")
    options = parser.parse_args()
    calls = good_calls()
    known = {name.partition(".")[0] for name in calls}
    known |= {"Healed"}  # what heal returns; nobody makes one
    missing = {name for name in wb.__all__ if callable(getattr(wb, name)) and name not in known}
    print(f"without a row here: {', '.join(sorted(missing)) or 'none'}", flush=True)
    np.seterr(all="ignore")
    lines = options.journal.read_text().splitlines() if options.journal and options.journal.exists() else []
    done = {one["function"]: one for one in map(json.loads, lines)}
    for name in options.only or calls:
        if name in done:
            continue
        done[name] = of_function(name, calls[name], bool(options.only))
        if options.journal:
            with options.journal.open("a") as file:
                file.write(json.dumps(done[name]) + "\n")
    counts = sum((Counter(one["rows"]) for one in done.values()), Counter())
    wrong = [line for one in done.values() for line in one["wrong"]]
    broken = sorted(missing) + [name for name, one in done.items() if not one["works"]]
    slow = sorted(done.values(), key=lambda one: -one["seconds"])[:12]
    print(json.dumps(counts), "slowest:", ", ".join(f"{one['function']} {one['seconds']} s" for one in slow))
    if not options.only:
        told = {"rows": dict(counts), "functions": len(done), "wrong": wrong, "without_a_good_call": broken}
        told |= {"commits": sorted({one["commit"] for one in done.values()})}
        print(write_record("attack-cpu", None, results=told))
    return int(bool(wrong or broken))


if __name__ == "__main__":
    sys.exit(main())
