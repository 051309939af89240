"""Further good calls for ``attack.py``: recovery, merging, speculation, their figures and tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import workbench as wb

NAN = math.nan


class Odd:
    """An object of no use to anybody, with a name that prints well."""

    def __repr__(self) -> str:
        return "Odd()"


ODD = Odd()
LENGTHS: list[Any] = [5, "12", [0], [-1], [1.5], ["2"], [None], [], [True], ODD]
COUNT: list[Any] = [0, -1, 1.5, "3", True, NAN, ODD]
FOLDERS: list[Any] = [None, 5, "", "a\0b", "/no/such/folder", "x" * 300, ODD]
MERGES: list[Any] = [5, "34", [5], [(9, 1)], [(2, 0)], [(2, 99)], [("a", 1)], [(2,)], [(2, 1.5)], None, ODD]
NAMES: list[Any] = [None, 5, [], ["nobody"], [5], [None], "nobody", ODD]
TENSORS: list[Any] = [None, 5, "no such", "", torch.ones(4), torch.full((3,), NAN), {}, {"x": 5}, [1.0], ODD]

#: what is tried under a name that is no function of the package: methods and classes
METHODS: dict[str, Callable[..., Any]] = {
    "Run.path": lambda run, name: run.path(name),
    "Run.frame": lambda run, name, function, makes: run.frame(name, function, makes=makes),
    "Run.write": lambda run, name, frame: run.write(name, frame),
    "Run.read": lambda run, name: run.read(name),
    "Run.write_json": lambda run, name, value: run.write_json(name, value),
    "Run.read_json": lambda run, name: run.read_json(name),
    "Run.provenance": lambda run, name: run.provenance(name),
    "Run.figure": lambda run, fig, name: run.figure(fig, name, formats=["csv"]),
    "Run.variant": lambda run, name: run.variant(name),
    "Run.save_variant": lambda run, variant: run.save_variant(variant),
    "Run.digest": lambda run, name: run.digest(name),
    "Run.lock": lambda run, name: run.lock(name),
    "Evaluated.of": lambda found, variant: found.of(variant),
    "Collapse.variant": lambda collapse, name, model, adapter: collapse.variant(
        name, model=model, adapter=adapter
    ),
    "LiveLoss.watch": lambda live, name: live.watch(name),
    "LiveLoss.add": lambda live, name, log: live.add(name, log),
    "HealingConfig.preset": lambda name: wb.HealingConfig.preset(name),
    "BlockPicker.choose": lambda picker, start, size: picker.choose(start, size),
    "BlockPicker.choose_layers": lambda picker, layers: picker.choose_layers(layers),
    "BlockPicker.choose_preset": lambda picker, name, size: picker.choose_preset(name, size),
    "BlockPicker.keep": lambda picker, layers: picker.keep(layers),
    "BlockPicker.drop": lambda picker, start, size: picker.drop(start, size),
    "BlockPicker.look": lambda picker, layers: picker.look(layers),
    "BlockPicker.look_with": lambda picker, look: picker.look_with(look),
    "BlockPicker.figure": lambda picker, layers: picker.figure(layers),
    "BlockPicker.export": lambda picker, form: picker.export(form),
    "BlockPicker.save": lambda picker, run: picker.save(run),
}
RESULTS: list[Any] = [
    None,
    5,
    "",
    "../x.csv",
    "a\0b.csv",
    "x" * 300 + ".csv",
    "/tmp/x.csv",
    ".x.csv",
    "x.xls",
    ODD,
]
STORED: list[Any] = [*RESULTS, "no-such.csv"]
ALL: list[Any] = [5, "34", [-1], [99], [1.5], ["3"], [None], [True], list(range(7)), [], ODD]

#: bad values by function (or *) and argument, where the argument's name alone does not say them
OWN: dict[tuple[str, str], list[Any]] = {
    **{(name, "run"): [] for name in METHODS if name.startswith("Run.")},
    **{(f"Run.{name}", "name"): [*RESULTS[:-3], ODD] for name in ("path", "digest", "lock", "figure")},
    **{(f"Run.{name}", "name"): RESULTS for name in ("frame", "write", "write_json")},
    **{(f"Run.{name}", "name"): STORED for name in ("read", "read_json", "provenance", "variant")},
    ("Run.frame", "function"): [None, 5, "block_angles", lambda: None, lambda: 5, lambda: {}, ODD],
    ("Run.frame", "makes"): [5, "x", ["no-such.csv"], ["../x"], [5], [None], ODD],
    ("Run.write", "frame"): [None, 5, "frame", {}, pd.DataFrame({"x": [ODD]}), ODD],
    ("Run.write_json", "value"): [ODD, {"a": ODD}, {1, 2}, [NAN]],
    ("Run.save_variant", "variant"): [None, 5, "base", {}, ODD],
    ("LiveLoss", "every"): [-1, "3", NAN, None, ODD],
    ("LiveRecovery", "every"): [-1, "3", NAN, None, ODD],
    ("LiveLoss.watch", "name"): [None, 5, ODD],
    ("LiveLoss.add", "name"): [None, 5, ODD],
    ("HealingConfig.preset", "name"): [None, 5, "", "no such", [], ODD],
    ("RewriteTemplate", "math"): [None, 5, ODD],
    ("RewriteTemplate", "open"): [None, 5, ODD],
    ("RewriteTemplate", "leaks"): [None, 5, "leak", [5], [None], ODD],
    ("Collapse.variant", "model"): [None, 5, "", ODD],
    ("Collapse.variant", "name"): [None, 5, "", "../x", "a/b", ODD],
    ("Collapse.variant", "adapter"): [5, "../x", "a\0b", ODD],
    ("Evaluated.of", "variant"): [None, 5, "nobody", "", [], ODD],
    **{(f"BlockPicker.{name}", "layers"): ALL for name in ("choose_layers", "keep", "look", "figure")},
    ("BlockPicker.drop", "start"): [None, -1, 99, "a", [99], ODD],
    ("BlockPicker.choose", "start"): [None, -1, 99, "a", 1.5, ODD],
    **{(f"BlockPicker.{name}", "size"): [0, 99, "a", 1.5, ODD] for name in ("choose", "drop")},
    ("BlockPicker.choose_preset", "name"): [None, 5, "", "no such", [], ODD],
    ("BlockPicker.choose_preset", "size"): [0, 99, "a", 1.5, ODD],
    ("BlockPicker.look_with", "look"): [None, 5, "look", ODD],
    ("BlockPicker.export", "form"): [None, 5, "", "no such", [], ODD],
    ("BlockPicker.save", "run"): [None, 5, "attack", ODD],
    ("state_scores", "texts"): [
        None,
        5,
        "one text",
        [],
        {"a": None},
        {"a": []},
        {"a": "text"},
        {"a": [5]},
        ODD,
    ],
    ("*", "target_layers"): [*COUNT, 7, 99],
    ("*", "per_iteration"): COUNT,
    ("*", "loss"): [5, "hidden", {}, {"no_such": 1}, {"hidden": -1}, {"hidden": NAN}, {"hidden": "1"}, ODD],
    ("*", "calibration"): [None, 5, "one text", [], [None], [""], ["  "], [5.5], {"a": 1}, ["a\ud800b"], ODD],
    ("*", "method"): ["no such", "", 5, None, ODD],
    ("*", "merging"): ["no such", "", 5, None, ODD],
    ("*", "norms"): ["no such", "", 5, None, ODD],
    ("*", "merges"): MERGES,
    ("*", "merged_at_once"): [0, 1, -1, 99, 1.5, "3", NAN, None, ODD],
    ("*", "threshold"): [-2, 2, "0.5", NAN, None, ODD],
    ("*", "lowest"): [-1, 99, 1.5, "1", NAN, None, ODD],
    ("*", "highest"): [-1, 99, 1.5, "5", NAN, ODD],
    ("*", "interval"): COUNT,
    ("*", "at_once"): [5, "23", [], [0], [1], [99], [1.5], ["2"], [None], None, ODD],
    ("*", "thresholds"): [0.5, "0.5", [], [2], [NAN], ["0.5"], [None], None, ODD],
    ("*", "intervals"): [1, "12", [], [0], [1.5], ["1"], [None], None, ODD],
    ("laco_for", "held_out"): [5, "one text", [None], [""], [5.5], {"a": 1}, ODD],
    ("*", "t"): [-0.1, 1.1, NAN, "0.5", None, [], [2], ["0.5"], [None], True, ODD],
    ("*", "ts"): [0.5, "0.5", None, [], [-0.1], [1.1], [NAN], ["0.5"], [None], [True], [[]], [[2]], ODD],
    ("*", "density"): [0, -1, 1.1, NAN, "0.5", None, ODD],
    ("*", "a"): TENSORS,
    ("*", "b"): TENSORS,
    ("merge_variants", "first"): [None, 5, "base", [], ODD],
    ("merge_variants", "second"): [None, 5, "base", [], ODD],
    ("merge_variants", "name"): [5, "", "../x", "a\0b", ODD],
    ("early_exit", "name"): [5, "../x", "a/b/c", ODD],
    ("early_exit", "layers"): [*COUNT, 7, 99],
    ("*", "drafts"): [None, 5, "a", [], [5], ["base"], {}, {"a": None}, {"a": 5}, {5: None}, ODD],
    ("*", "draft_lengths"): LENGTHS,
    ("*", "draft_length"): [*COUNT, 99],
    ("tokens_per_call", "draft_length"): [-1, 1.5, "3", NAN, [], ODD],
    ("theory_speed_up", "draft_length"): [-1, 1.5, "3", NAN, [], ODD],
    ("*", "rate"): [-0.1, 1.1, NAN, "0.5", None, [], ODD],
    ("theory_speed_up", "tokens"): [-1, NAN, "2", None, [], ODD],
    ("*", "cost"): [-1, NAN, "2", None, ODD],
    ("*", "verify"): [-1, NAN, "2", None, ODD],
    ("draft_speed", "rows"): COUNT,
    ("*", "forced"): [-0.1, 1.1, NAN, "0.5", True, ODD],
    ("*", "ends"): ["yes", 5, None, ODD],
    ("merge_gain", "ends"): NAMES,
    ("merge_gain", "merges"): NAMES,
    ("*", "between"): [None, 5, "ab", [], [5], ["ab"], [("early-exit-4", "nobody")], [("a",)], ODD],
    ("*", "by_kind"): ["yes", 5, None, ODD],
    ("*", "measure"): ["no such", "", 5, None, ODD],
    ("recover", "removed"): [5, "34", [-1], [99], [1.5], ["3"], [None], [True], list(range(7)), None, ODD],
    ("carry_adapter", "removed"): [5, "34", [-1], [99], [1.5], ["3"], [None], [True], list(range(7)), ODD],
    ("*", "source"): FOLDERS,
    ("recover", "start"): [5, "", "a\0b", "/no/such/folder", ODD],
    ("*", "report_to"): [5, "no such", ["no such"], None, ODD],
    ("iteration_variants", "model"): [None, 5, "", ODD],
    ("iteration_variants", "folder"): [None, 5, ODD],
    ("iteration_variants", "phases"): [None, 5, ["X"], [], "P", [5], ODD],
    ("*", "prefix"): [None, 5, ODD],
    ("read_iterations", "out"): FOLDERS,
    ("recovery_log", "out"): FOLDERS,
    ("seed_ablation", "variants"): [None, 5, [], {}, {"a": 5}, {"a": {}}, {"a": {0: 5}}, {"a": ["b"]}, ODD],
    ("*", "sets"): [
        None,
        5,
        "",
        [],
        {},
        [5],
        [None],
        [""],
        {5: "a"},
        {"a/b": "c"},
        {"a": None},
        {"a": 5},
        ODD,
    ],
    ("preset_parameters", "name"): [None, 5, "", "no such", [], ODD],
    ("story_model", "name"): [None, 5, "", ODD],
    ("story_model", "data"): [5, ODD],
    ("fitting", "sizes"): [],
    ("fitting", "data"): [5, "", "/no/such/folder", ODD],
    ("fingerprint", "obj"): [None, ODD, torch.nn.Linear(2, 2), print, {1: ODD}, [ODD], NAN],
    ("paper_figures", "columns"): [0, -1, 3, 1.5, "3", [], [3], None, True, ODD],
    ("paper_figures", "formats"): ["gif", 5, ["bmp"], [], None, "", ODD],
    ("paper_figures", "run"): [None, 5, "no/../x", "attack", ODD],
    ("*", "what"): [None, 5, ODD],
    ("work_ahead", "rows"): [-1, 1.5, "3", NAN, None, ODD],
    ("work_ahead", "tokens"): [-1, "3", NAN, None, ODD],
    ("work_ahead", "passes"): [-1, "3", NAN, None, ODD],
    ("say", "text"): [None, 5, ODD],
    ("*", "ours"): ["nobody", "", 5, None, ODD],
    ("methods_reading", "by"): ["no such", "", 5, None, ODD],
    ("phase_lines", "by"): ["no such", "", 5, None, ODD],
    ("*", "direct"): ["nobody", "", 5, None, ODD],
    ("*", "iterative"): ["nobody", "", 5, None, ODD],
    ("*", "perplexity"): ["no such", 5, ODD],
    ("*", "final_norm"): ["yes", 5, None, ODD],
    ("stack_over_iterations", "n_layers"): [0, 1, -5, "7", 2.5, NAN, ODD],
    ("recover", "temperature"): [0, -1, "1", NAN, math.inf, None, ODD],
    ("iterate", "temperature"): [0, -1, "1", NAN, math.inf, None, ODD],
}

#: as in ``attack.py``: a bad value that is good after all, and why
FINE: dict[tuple[str, str, str], str] = {
    ("Run.write", "frame", "frame['x']"): "any frame with a column can be kept",
    ("Run.write", "frame", "no rows"): "any frame with a column can be kept",
    ("Run.write_json", "value", "[nan]"): "NaN reads back as NaN",
    ("iterate", "response", "'no such'"): "examples that are texts have no columns",
    ("iterate", "response", "''"): "examples that are texts have no columns",
    ("recover", "response", "'no such'"): "examples that are texts have no columns",
    ("recover", "response", "''"): "examples that are texts have no columns",
    ("recover", "report_to", "'no such'"): "a recovery that is done tells nobody; a new one refuses it",
    ("recover", "report_to", "['no such']"): "a recovery that is done tells nobody; a new one refuses it",
    ("merge_variants", "name", "''"): "the default",
    ("draft_rounds", "run", "'no/../x'"): "a draft without an adapter needs no run",
    ("draft_speed", "run", "'no/../x'"): "a draft without an adapter needs no run",
    ("draft_view", "run", "'no/../x'"): "a draft without an adapter needs no run",
    ("acceptance_by_position", "rounds", "prompt as text"): "prompts may have names",
    ("theory_speed_up", "tokens", "nan"): "NaN in a frame stays NaN",
    ("theory_speed_up", "tokens", "[]"): "no number, no row",
    ("theory_speed_up", "draft_length", "nan"): "NaN in a frame stays NaN",
    ("theory_speed_up", "draft_length", "1.5"): "a mean of lengths",
    ("theory_speed_up", "draft_length", "[]"): "no number, no row",
    ("theory_speed_up", "cost", "nan"): "NaN in a frame stays NaN",
    ("theory_speed_up", "verify", "nan"): "NaN in a frame stays NaN",
    ("tokens_per_call", "rate", "nan"): "NaN in a frame stays NaN",
    ("tokens_per_call", "rate", "[]"): "no number, no row",
    ("tokens_per_call", "draft_length", "nan"): "NaN in a frame stays NaN",
    ("tokens_per_call", "draft_length", "1.5"): "a mean of lengths",
    ("tokens_per_call", "draft_length", "[]"): "no number, no row",
    ("fingerprint", "obj", "None"): "a setting may be None",
    ("fingerprint", "obj", "nan"): "a setting may be NaN",
    ("fingerprint", "obj", "Linear(in_features=2, out_features=2, bias=True)"): "a model by its weights",
    ("iteration_variants", "phases", "[]"): "no phase, no variant",
    ("merge_gain", "items", "item as text"): "items may have names",
    ("merge_gain", "scores", "None"): "every task on its own",
    ("merge_gain", "scores", "frame['x']"): "scores without groups: every task on its own",
    ("merging_reading", "angles", "None"): "angles are left out",
}


def more_calls(here: Path, told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return arguments that work, from what ``attack.good_calls`` has at hand (its local names)."""
    model, tokenizer, mt, run = (told[name] for name in ("model", "tokenizer", "mt", "run"))
    texts, distances, damage, items = (told[name] for name in ("texts", "distances", "damage", "items"))
    settings = {"batch_size": 4, "micro_batch_size": 2, "max_length": 32, "rank": 2, "max_steps": 2}
    config = wb.HealingConfig.preset("iterabre", **settings)
    recovering = {"config": config, "overwrite": True, "progress": False}
    iterating = mt | {"examples": texts, "target_layers": 5, "out": here / "iterate"} | recovering
    iterations = wb.iterate(**iterating)
    log = wb.recovery_log(here / "iterate").assign(variant="a")
    states = wb.iteration_variants(iterations, model="tiny", folder="iterate")
    names = ["base", *(one.name for one in states)]
    scores = pd.concat([told["scores"].head(2).assign(variant=name) for name in names], ignore_index=True)
    phases = wb.phase_scores(scores, iterations, base="base")
    phases = phases.drop_duplicates(["task", "phase", "iteration"])
    changes = wb.phase_change(phases)
    wb.recover(**mt, examples=texts, removed=[2], out=here / "recovered", **recovering)
    healed = _healed(model, tokenizer, told["distilled"], run)
    exits = [wb.early_exit(model, 4), wb.early_exit(model, 6)]
    chats = told["asked"]["prompts"][:3]
    short = {"draft_lengths": (1, 2), "max_new_tokens": 8}
    rounds = wb.draft_rounds(**mt, drafts=exits, prompts=chats, progress=False, **short)
    accepted, positions = wb.acceptance(rounds), wb.acceptance_by_position(rounds)
    between = [("early-exit-4", "early-exit-6")]
    comparison = wb.compare_drafts(rounds, between)
    speed = wb.draft_speed(**mt, drafts=exits[:1], prompts=chats, **short)
    speeds = wb.speed_ups(speed)
    every = pd.concat([part.assign(variant=name) for name, part in items.items()], ignore_index=True)
    gain = wb.merge_gain(every, ["base"], ["pruned"])
    run.frame("distances.csv", wb.mean_distances, told["angles"])
    frames = {"distances.csv": distances, "damage.csv": damage, "influence.csv": told["influence"]}
    frames |= {"draft_rounds.jsonl": rounds}
    notes = pd.DataFrame(
        {"variant": ["base", "pruned"], "model": "m", "approach": ["Direct+R", "Iterative+R"]}
    )
    notes = notes.assign(dropped=2, layers=5)
    path = pd.DataFrame({"t": [0.0, 0.5, 1.0], "recovery": [0.5, 0.6, 0.4]})
    several = scores.assign(approach=["iterate", "laco"] * (len(scores) // 2), metric="word_perplexity")
    return _methods(told) | {
        "state_scores": mt
        | {"variants": [told["base"]], "tasks": ["demo_pairs"], "texts": {"stories": texts[:2]}, "run": run}
        | {"limit": 4, "progress": False},
        "iterate": iterating
        | {"per_iteration": 1, "calibration": texts[:3], "loss": {"hidden": 1.0}, "temperature": 1.0}
        | {"response": "reference"},
        "recover": mt
        | {"examples": texts, "removed": [2], "out": here / "again", "merges": (), "merging": "equation"}
        | {"loss": {"hidden": 1.0}, "temperature": 1.0, "start": None, "response": "reference"}
        | {"report_to": ()}
        | recovering,
        "carry_adapter": {
            "model": model,
            "source": here / "recovered",
            "removed": [2, 3],
            "out": here / "carried",
        },
        "choose_layers": mt
        | {"texts": texts[:3], "target_layers": 5, "method": "shortgpt", "max_length": 64},
        "shortgpt_layers": mt | {"texts": texts[:3], "target_layers": 5},
        "laco": mt
        | {"texts": texts[:3], "merged_at_once": 3, "threshold": 0.5, "lowest": 1, "highest": None}
        | {"interval": 2, "merging": "equation", "max_length": 64},
        "laco_for": mt
        | {"texts": texts[:3], "target_layers": 5, "merging": "equation", "held_out": None, "at_once": (2, 3)}
        | {"thresholds": (0.5,), "intervals": (1,), "lowest": 1, "max_length": 64},
        "slerp": {"a": torch.eye(3), "b": torch.ones(3, 3), "t": 0.5, "norms": "linear"},
        "merge_variants": {"model": model, "first": healed[0], "second": healed[1], "ts": (0.5,), "run": run}
        | {"method": "slerp", "norms": "linear", "density": 0.5, "seed": 0, "name": None, "remember": True},
        "draft_rounds": mt
        | {"drafts": exits[:1], "prompts": chats, "run": None, "temperature": 0.0, "seed": 0, "batch_size": 4}
        | {"engine": "auto", "progress": False}
        | short,
        "draft_speed": mt
        | {"drafts": exits[:1], "prompts": chats, "run": None, "rows": 1, "forced": None, "ends": True}
        | {"seed": 0, "engine": "auto"}
        | short,
        "draft_view": {"model": model, "variant": exits[0], "run": None},
        "early_exit": {"model": model, "layers": 4, "name": None},
        "acceptance": {"rounds": rounds, "by_kind": False, "confidence": 0.95, "seed": 0},
        "acceptance_by_position": {"rounds": rounds, "draft_length": None, "confidence": 0.95, "seed": 0},
        "acceptance_by_length": {"acceptance": accepted, "measure": "acceptance"},
        "acceptance_by_place": {"positions": positions},
        "compare_drafts": {"rounds": rounds, "between": between, "draft_length": None, "by_kind": False}
        | {"confidence": 0.95, "seed": 0},
        "drafts_reading": {"comparison": comparison},
        "speed_ups": {"speed": speed, "confidence": 0.95, "seed": 0},
        "speed_against_theory": {"speeds": speeds},
        "speed_reading": {"speeds": speeds},
        "theory_speed_up": {"tokens": 2.0, "draft_length": 2, "cost": 0.5, "verify": 1.0},
        "tokens_per_call": {"rate": 0.5, "draft_length": 2},
        "paper_figures": {"run": run, "out": here / "paper", "columns": 1, "formats": "csv"},
        "fitting": {"model": model, "data": None, "sizes": None},
        "named_sets": {"sets": ["a.jsonl", "c4"]},
        "preset_parameters": {"name": "sdd"},
        "story_model": {"name": "demo", "data": None},
        "work_ahead": {
            "model": model,
            "what": "a stage",
            "rows": 5,
            "tokens": 9.0,
            "passes": 1.0,
            "cost": 1.0,
        },
        "fingerprint": {"obj": ["a", "b"]},
        "say": {"text": "words"},
        "iteration_reading": {"iterations": iterations},
        "iteration_variants": {"iterations": iterations, "model": "tiny", "folder": "iterate"}
        | {"phases": ("P", "P+R"), "prefix": ""},
        "read_iterations": {"out": here / "iterate"},
        "recovery_log": {"out": here / "iterate"},
        "removal_order": {"iterations": iterations},
        "stack_over_iterations": {"iterations": iterations, "n_layers": 7},
        "recovery_progress": {"log": log, "n_layers": 7},
        "loss_terms": {"log": log},
        "phase_scores": {"scores": scores, "iterations": iterations, "base": "base", "prefix": ""},
        "phase_change": {"scores": phases},
        "phase_changes": {"changes": changes, "iterations": iterations},
        "phase_lines": {"scores": phases, "by": "task", "columns": 3},
        "recovery_gain_reading": {"changes": changes},
        "collapse_": {"model": None, "merges": [(2, 1)], "merging": "equation"},
        "collapsed_layers": {"model": model, "merges": [(2, 1)], "merging": "equation"},
        "last_states": mt | {"texts": texts[:3], "final_norm": True, "max_length": 64, "max_tokens": 512},
        "merge_gain": {"items": every, "ends": ["base"], "merges": ["pruned"], "scores": told["scores"]}
        | {"prefer": None, "confidence": 0.95, "seed": 0},
        "merging_path": {"path": path, "measure": "recovery"},
        "merging_reading": {
            "gain": gain,
            "angles": pd.DataFrame({"angle": [1.0, 2.0], "linear": [True, False]}),
        },
        "methods_reading": {
            "scores": several,
            "ours": "iterate",
            "metric": "word_perplexity",
            "by": "approach",
        },
        "blimp_groups": {"scores": _blimp()},
        "choice_reading": {"distances": distances, "damage": damage, "layers": [2, 3]},
        "claim_frames": {},
        "claims_table": {"frames": frames},
        "claims_reading": {"claims": wb.claims_table(frames)},
        "direct_iterative_table": {"scores": told["scores"], "notes": notes, "direct": "Direct+R"}
        | {"iterative": "Iterative+R", "perplexity": None, "prefer": "acc"},
        "multilingual_table": {"scores": told["scores"].assign(category="multilingual"), "notes": notes}
        | {"prefer": "acc"},
        "seed_ablation": mt
        | {"variants": {"sft": {0: told["pruned"]}}, "tasks": ["demo_pairs"], "run": run, "limit": 4}
        | {"progress": False},
    }


def _methods(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return arguments that work for the methods, and for classes whose values are checked."""
    run, distances = told["run"], told["distances"]
    run.write("kept.csv", distances)
    run.write_json("kept.json", {"a": 1})
    of_run = {"run": run, "name": "kept.csv"}
    names = ("path", "read", "provenance", "digest", "lock")
    log = told["healed"].log
    picker = {"picker": wb.BlockPicker(distances)}
    collapse = wb.Collapse(((2, 1),), (3,), "equation", pd.DataFrame())
    return {f"Run.{name}": of_run for name in names} | {
        "Run.frame": {"run": run, "name": "made.csv", "function": distances.head, "makes": ()},
        "Run.write": of_run | {"frame": distances},
        "Run.write_json": {"run": run, "name": "kept.json", "value": {"a": 1}},
        "Run.read_json": {"run": run, "name": "kept.json"},
        "Run.figure": {"run": run, "fig": told["figure"], "name": "distances"},
        "Run.variant": {"run": run, "name": "one"},
        "Run.save_variant": {"run": run, "variant": told["base"]},
        "Evaluated.of": {"found": told["found"], "variant": "base"},
        "Collapse.variant": {"collapse": collapse, "name": "a", "model": "demo", "adapter": None},
        "LiveLoss": {"every": 1.0, "title": "Loss"},
        "LiveRecovery": {"n_layers": 7, "every": 1.0, "title": "Loss"},
        "LiveLoss.watch": {"live": wb.LiveLoss(), "name": "a"},
        "LiveLoss.add": {"live": wb.LiveLoss(), "name": "a", "log": log},
        "RewriteTemplate": {
            "math": "{instruction} {reference}",
            "open": "{instruction} {reference}",
            "leaks": (),
        },
        "HealingConfig.preset": {"name": "sdd"},
        "BlockPicker.choose": picker | {"start": 2, "size": 2},
        "BlockPicker.choose_layers": picker | {"layers": [2, 4]},
        "BlockPicker.choose_preset": picker | {"name": picker["picker"].presets[0], "size": 2},
        "BlockPicker.keep": picker | {"layers": [2]},
        "BlockPicker.drop": picker | {"start": 2, "size": 1},
        "BlockPicker.look_with": picker | {"look": _seen},
        "BlockPicker.look": {"picker": wb.BlockPicker(distances).look_with(_seen), "layers": [2]},
        "BlockPicker.figure": picker | {"layers": [2]},
        "BlockPicker.export": picker | {"form": "python"},
        "BlockPicker.save": picker | {"run": run},
    }


def _seen(layers: Any, cancelled: Any) -> None:
    """Look at nothing."""


def _healed(model: Any, tokenizer: Any, examples: pd.DataFrame, run: Any) -> list[Any]:
    """Return two variants of the run, healed with another seed each."""
    found = []
    for seed, name in enumerate(("one", "two")):
        config = wb.HealingConfig(rank=2, max_steps=2, batch_size=4, learning_rate=1e-2, seed=seed)
        with wb.without_layers(model, [2, 3]):
            wb.heal(model, tokenizer, examples, config=config, out=run.path(name), progress=False)
        found.append(run.save_variant(wb.Variant(name, "tiny", removed=(2, 3), adapter=name)))
    return found


def _blimp() -> pd.DataFrame:
    """Return scores of BLiMP as ``evaluate`` gives them, every paradigm once."""
    from workbench.evaluation.suites import BLIMP_GROUPS

    names = [name for names in BLIMP_GROUPS.values() for name in names]
    rows = pd.DataFrame({"task": [f"blimp_{name}" for name in names], "metric": "acc", "value": 0.5})
    return rows.assign(variant="base", parent="blimp", category="", n_shot=0, stderr=0.1, n=10, truncated=0)
