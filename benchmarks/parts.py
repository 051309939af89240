"""What `findings.py` and `drafts_real.py` share: parts, processes of their own, and the record of all.

A part has a folder. It writes its frames there as they are made, and what it is into `part.json` after every
step, so that a part that is cut loses only what was running: started again, it reads what it had, and a part
that came to its end is not begun again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from measuring import RECORDS, ROOT, commit, machine, versions

import workbench as wb

#: options that decide where and how fast a part runs, not what comes out
NEUTRAL = (
    "out",
    "gpus",
    "at_once",
    "parts",
    "stagger",
    "seconds",
    "device",
    "collect",
    "record",
    "micro",
    "batch",
    "speed",
    "late",
)


class Part:
    """One part: its model, its folder, how long each step took.

    Args:
        options: of the command line.
        name: of the folder.
        shape: how much is measured, a dataclass.
        model: as for ``load_model``; with further settings of it.
    """

    def __init__(self, options: argparse.Namespace, name: str, shape: Any, **settings: Any) -> None:
        self.options, self.shape, self.data, self.name = options, shape, options.data, name
        self.folder, self.began = options.out / name, time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model, self.tokenizer = wb.load_model(options.model, **settings)
        self.seconds: dict[str, float] = {}

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what a run before a cut made under this name, or make it and keep it."""
        place = self.folder / f".kept-{key(self.options)}" / f"{name}.pkl"
        if not place.is_file():
            made = make()
            place.parent.mkdir(exist_ok=True)
            pd.to_pickle(made, temporary := place.with_name(f".{place.name}"))
            os.replace(temporary, place)
        return pd.read_pickle(place)

    def micro(self) -> int:
        """Return how many rows are trained on at once."""
        return int(self.options.micro or self.shape.micro)

    def batch(self, most: int) -> int:
        """Return how many prompts run at once, at most so many."""
        return min(int(self.options.batch or most), most)

    def done(self) -> None:
        """Note that the part came to its end."""
        (self.folder / "done").write_text(key(self.options))

    def about(self) -> dict[str, Any]:
        """Return what else `part.json` says."""
        return {}

    def write(self, name: str, frame: pd.DataFrame, **labels: Any) -> pd.DataFrame:
        """Write a frame of this part, its labels as first columns."""
        told = frame.copy()
        for column, value in reversed(labels.items()):
            told.insert(0, column, value)
        place = self.folder / f"{name}.csv.gz"
        told.to_csv(temporary := place.with_name(f".{place.name}"), index=False, compression="gzip")
        os.replace(temporary, place)
        return told

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Say how long something took, and note it."""
        start = time.perf_counter()
        yield
        now = time.perf_counter()
        self.seconds[what] = round(now - start, 1)
        print(f"{self.name:28} {what:44} {now - start:7.1f} s, at {now - self.began:6.1f} s", flush=True)
        told = {"model": wb.describe_model(self.model), "shape": asdict(self.shape), **self.about()}
        told |= {"seconds": self.seconds, "machine": machine(), "versions": versions(), "commit": commit()}
        (self.folder / "part.json").write_text(json.dumps(told, indent=1, default=str) + "\n")


def key(options: argparse.Namespace) -> str:
    """Return a short name of the options that decide what comes out."""
    told = {name: str(value) for name, value in sorted(vars(options).items()) if name not in NEUTRAL}
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


def is_done(options: argparse.Namespace, name: str) -> bool:
    """Say whether a part came to its end already, with these options; then also print it."""
    place = options.out / name / "done"
    found = place.is_file() and place.read_text() == key(options)
    if found:
        print(f"{name}: is done", flush=True)
    return found


def collect(
    options: argparse.Namespace, name: str, summed_up: Callable[[list[Path]], Mapping[str, pd.DataFrame]]
) -> None:
    """Merge the frames of all parts into a dated folder of the records, small enough to be committed."""
    folder = options.record or RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-{name}-smollm2"
    folder.mkdir(parents=True, exist_ok=True)
    parts = sorted(path.parent for path in options.out.glob("*/part.json"))
    frames = summed_up(parts)
    for title, frame in frames.items():
        frame.to_csv(folder / f"{title}.csv", index=False, float_format="%.6g")
    about = [{"part": part.name, **json.loads((part / "part.json").read_text())} for part in parts]
    place = folder / "record.json"  # notes on what it lacks are written by hand, and stay
    notes = json.loads(place.read_text()).get("notes", []) if place.is_file() else []
    place.write_text(json.dumps({"benchmark": name, "notes": notes, "parts": about}, indent=1) + "\n")
    print(f"{folder}: {len(frames)} frames of {len(parts)} parts")


def part_arguments(description: str, parts: list[str] | None = None) -> argparse.ArgumentParser:
    """Return the command line that both share."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=form)
    add = parser.add_argument
    add("--model", default="smollm2", help="a folder, or 'smollm2'")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data")
    add("--out", type=Path, required=True, help="folder of the parts' frames")
    add("--part", default="all", choices=parts, help="all starts every part as a process of its own")
    add("--seed", type=int, default=0)
    add("--shape", choices=["full", "small"], default="full")
    add("--gpus", type=int, default=1)
    add("--stagger", type=float, default=1.0, help="seconds between two starts")
    add("--seconds", type=float, default=480)
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--micro",
        type=int,
        help="rows trained on at once, where processes share a GPU (default: the shape's)",
    )
    add("--batch", type=int, help="prompts and items at once, likewise")
    add("--collect", action="store_true", help="merge the parts into benchmarks/records")
    add("--record", type=Path, help="folder of the record")
    return parser
