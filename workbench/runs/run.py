"""The run folder: every result whole, beside it where it came from, and no stage computed twice.

A *run* is one folder under ``data/runs``. ``Run.frame`` stores what a stage computes with a sidecar
``<name>.meta.json`` that holds its inputs, its schema, its SHA-256 and the environment. The same inputs give
the stored frame back; other inputs, other code or a file that was altered make the stage run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from workbench.places import NOTEBOOKS, runs_folder
from workbench.runs.files import (
    decode_frame,
    encode_frame,
    sha256_of,
    write_bytes_atomic,
    write_text_atomic,
)
from workbench.runs.provenance import code_inputs, environment, inputs_fingerprint, plain
from workbench.runs.variant import Variant, _check_name, _check_path


class Run:
    """One run folder. Make it with ``open_run``."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {len(self.files())} results in {self.folder})"

    def path(self, name: str) -> Path:
        """Return the path of a file or folder of this run, such as ``distances.csv`` or ``adapters/sft``."""
        _check_path("name", name)
        return self.folder / name

    def frame(
        self,
        name: str,
        compute: Callable[[], pd.DataFrame],
        /,
        *,
        makes: Iterable[str] = (),
        **inputs: Any,
    ) -> pd.DataFrame:
        """Return the stored frame when the same code made it from the same inputs, else compute and store it.

        Args:
            name: file name in the run, ending in ``.csv`` (numbers) or ``.jsonl`` (texts).
            compute: makes the frame; called only when needed.
            makes: files and folders of the run that ``compute`` writes besides the frame (an adapter); when
                one of them is missing or altered, the stage runs again.
            **inputs: everything the result depends on, as plain data: ``texts=texts``,
                ``model=describe_model(model)``, ``seed=0``. Plain values that ``compute`` reads from the
                notebook count as inputs without being named; what it reads from the run does not.

        Returns:
            The frame as it reads back from the file, so a stored and a fresh one are the same to the bit.

        Raises:
            ValueError: for a name or an input that cannot be stored.
        """
        self.path(name)
        _check_ending(name)
        declared = {"inputs": plain(inputs, "inputs"), "code": code_inputs(compute)}
        stored = self._load(name)
        if stored and stored[0].get("fingerprint") == inputs_fingerprint(declared) and self._whole(stored[0]):
            self._trace(name, *stored[0]["makes"])
            return decode_frame(name, stored[1], stored[0]["schema"])
        data, schema = encode_frame(name, compute())
        products = {product: sha256_of(self._product(name, product)) for product in makes}
        self._store(name, data, {"schema": schema, **declared, "makes": products})
        self._trace(*products)
        return decode_frame(name, data, schema)

    def write(self, name: str, frame: pd.DataFrame, /, **inputs: Any) -> Path:
        """Write a frame with its provenance; see ``frame`` for names and inputs."""
        self.path(name)
        data, schema = encode_frame(name, frame)
        return self._store(name, data, {"schema": schema, "inputs": plain(inputs, "inputs")})

    def read(self, name: str, /) -> pd.DataFrame:
        """Read a frame that this run holds.

        Raises:
            ValueError: when it is missing (says which notebook writes it and what is there), or was altered.
        """
        _check_ending(name)
        meta, data = self._stored(name)
        return decode_frame(name, data, meta["schema"])

    def write_json(self, name: str, value: Any, /, **inputs: Any) -> Path:
        """Write plain data (dicts, lists, texts, numbers) as JSON with its provenance."""
        self.path(name)
        if not name.endswith(".json") or name.endswith(".meta.json"):
            raise ValueError(f"name must end in .json (and not in .meta.json), got {name!r}")
        data = (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
        return self._store(name, data, {"inputs": plain(inputs, "inputs")})

    def read_json(self, name: str, /) -> Any:
        """Read what ``write_json`` wrote; errors as for ``read``."""
        return json.loads(self._stored(name)[1])

    def provenance(self, name: str, /) -> dict[str, Any]:
        """Return where a result came from: inputs, versions, commit, command, time, and its SHA-256."""
        return self._stored(name)[0]

    def figure(self, fig: Any, name: str, /, **options: Any) -> Any:
        """Save a figure under ``figures/`` (see ``plots.save_figure``) and return it for display."""
        from workbench.runs.figures import save_figure

        path = self.path(f"figures/{name}")
        save_figure(fig, path, **options)
        self._trace(*(f"figures/{file.name}" for file in sorted(path.parent.glob(f"{name}.*"))))
        return fig

    def save_variant(self, variant: Variant) -> Variant:
        """Remember a variant under its name, replacing one of the same name."""
        self.write_json(f"variants/{variant.name}.json", asdict(variant))
        return variant

    def variant(self, name: str) -> Variant:
        """Return the variant of that name."""
        if not self.path(f"variants/{name}.json").is_file():
            known = [variant.name for variant in self.variants()]
            raise ValueError(f"variant must be one of {known} in run {self.name!r}, got {name!r}")
        return self._variant(name)

    def variants(self) -> list[Variant]:
        """Return every variant of the run, oldest first."""
        names = _results_in(self.folder / "variants")
        names.sort(key=lambda name: (self.provenance(f"variants/{name}")["created"], name))
        self._trace("variants")
        return [self._variant(name.removesuffix(".json")) for name in names]

    def files(self) -> list[str]:
        """Return the names of the results that this run holds, sorted."""
        return _results_in(self.folder)

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a file or folder of this run (of the names in ``variants``), "" for none."""
        path = self.path(name)
        if name == "variants":
            return hashlib.sha256("\n".join(_results_in(path)).encode()).hexdigest()
        return sha256_of(path) if path.exists() else ""

    def _trace(self, *names: str) -> None:
        """Tell the notebook runner which results a notebook made or read; when they change it runs again."""
        if log := os.environ.get("WORKBENCH_TRACE"):
            lines = [json.dumps([str(self.folder), name, self.digest(name)]) + "\n" for name in names]
            with open(log, "a", encoding="utf-8") as file:
                file.writelines(lines)

    def _variant(self, name: str) -> Variant:
        stored = self.read_json(f"variants/{name}.json")
        return Variant(**{**stored, "removed": tuple(stored["removed"])})

    def _store(self, name: str, data: bytes, meta: Mapping[str, Any]) -> Path:
        """Write file, then sidecar, under the run's lock; after a kill in between their SHA-256 disagrees."""
        parts = {key: meta[key] for key in ("inputs", "code") if key in meta}
        sidecar = {
            "file": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "fingerprint": inputs_fingerprint(parts),
            **meta,
            **environment(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock", timeout=60):
            path = write_bytes_atomic(self.path(name), data)
            write_text_atomic(_sidecar(path), json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n")
        self._trace(name)
        return path

    def _load(self, name: str) -> tuple[dict[str, Any], bytes] | None:
        """Return sidecar and bytes when both are there and belong together, else None."""
        path = self.path(name)
        for _ in range(5):
            try:
                meta, data = json.loads(_sidecar(path).read_bytes()), path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
                return None
            if meta["sha256"] == hashlib.sha256(data).hexdigest():
                return meta, data
            time.sleep(0.02)  # another process may be between its two writes
        return None

    def _stored(self, name: str) -> tuple[dict[str, Any], bytes]:
        found = self._load(name)
        if found is None:
            raise ValueError(self._why_not(name))
        self._trace(name)
        return found

    def _why_not(self, name: str) -> str:
        if self.path(name).is_file():
            state = (
                f"{name} in run {self.name!r} was altered or not finished since its provenance was written"
            )
        else:
            state = f"{name} is not in run {self.name!r} ({self.folder})"
        writer = notebook_that_writes(name)
        way_out = f"run notebook {writer} for this run" if writer else "no notebook writes it"
        there = ", ".join(self.files()) or "nothing"
        return f"{state}; {way_out}. There now: {there}"

    def _whole(self, meta: Mapping[str, Any]) -> bool:
        return all(self.digest(name) == digest for name, digest in meta["makes"].items())

    def _product(self, name: str, product: str) -> Path:
        path = self.path(product)
        if not path.exists():
            raise ValueError(f"makes names {product!r}, but computing {name} did not write it")
        return path


def open_run(name: str = "demo", *, root: str | Path | None = None) -> Run:
    """Open a run folder, which is made when the first result is written.

    Args:
        name: of the run: letters, digits and ``. _ + = -``.
        root: folder of all runs; None means ``data/runs`` (see ``workbench.places.runs_folder``).

    Raises:
        ValueError: for a name that could leave the folder of runs.
    """
    _check_name("run name", name)
    return Run(name, Path(root if root is not None else runs_folder()) / name)


def notebook_that_writes(name: str) -> str | None:
    """Return the notebook of this checkout that writes a file of that name to its run, or None."""
    call = re.compile(r"\.(?:frame|write|write_json)\(\s*f?[\"']" + re.escape(name) + r"[\"']")
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if any(call.search("".join(cell["source"])) for cell in cells):
            return path.stem
    return None


def _results_in(folder: Path) -> list[str]:
    sidecars = folder.rglob("[!.]*.meta.json") if folder.is_dir() else ()
    return sorted(s.relative_to(folder).as_posix().removesuffix(".meta.json") for s in sidecars)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".meta.json")


def _check_ending(name: str) -> None:
    if not name.endswith((".csv", ".jsonl")):
        raise ValueError(f"name must end in .csv (numbers) or .jsonl (texts), got {name!r}")
