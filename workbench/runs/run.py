"""The run folder: every result whole, beside it where it came from, and no stage computed twice.

A *run* is one folder under ``data/runs``. ``Run.frame`` stores what a stage computes with a sidecar
``<name>.meta.json`` that holds its inputs, its schema, its SHA-256 and the environment. The same inputs give
the stored frame back; other inputs, other code or a file that was altered make the stage run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock

from workbench.arguments import looked_at
from workbench.bars import say_together
from workbench.checks import check_writable, told
from workbench.digests import digest
from workbench.places import runs_folder
from workbench.runs import files
from workbench.runs.content import content_of, identity, named
from workbench.runs.keys import Key, stage_key
from workbench.runs.provenance import environment
from workbench.runs.variant import Variant, _check_name, _check_path
from workbench.runs.writers import notebook_that_writes

if TYPE_CHECKING:
    import plotly.graph_objects as go


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
        function: Callable[..., Any],
        /,
        *arguments: Any,
        makes: Iterable[str] = (),
        of: Iterable[Variant] = (),
        **settings: Any,
    ) -> pd.DataFrame:
        """Return the frame of ``function(*arguments, **settings)``, computed once for the same inputs.

        The stored frame is served as long as nothing that it depends on has changed: the arguments by what
        they hold (each weight of a model, its configuration, tokenizer and chat template, frames, texts,
        files behind paths), the code of the function with what it calls, and the versions of libraries. What
        cannot change a result does not count: where files lie, ``progress``, and of the package's functions
        ``batch_size``, ``engine``, ``compiled``. See ``workbench.runs.keys``.

        Args:
            name: file name in the run, ending in ``.csv`` (numbers) or ``.jsonl`` (texts).
            function: returns a frame, or something with ``to_frame()``.
            *arguments: of the function.
            makes: further files and folders of the run that the function writes. Those that it is given as
                ``out`` or ``items`` belong to the stage anyway, wherever they lie: when one is missing or
                altered, the stage runs again; an ``out`` in the run that was made from other inputs is kept
                under another name.
            of: variants that the frame tells of, where its arguments do not hold them; see ``outdated``.
            **settings: of the function.

        Returns:
            The frame as it reads back from the file, so a stored and a fresh one are the same to the bit.

        Raises:
            ValueError: for a name or an argument that cannot be stored or followed, or a file of that name
                that the run did not make.
            TypeError: for arguments that the function does not take.
        """
        files.check_file(name)
        if not callable(function):
            raise ValueError(f"function must be one that returns a frame, got {function!r:.80}")
        if isinstance(makes, str) or not isinstance(makes, Iterable):
            raise ValueError(f"makes must be a list of names in the run, got {makes!r:.80}")
        for product in (name, *(makes := [*makes])):
            self.path(product)
        key = stage_key(function, arguments, settings, self.folder)
        outputs = {setting: self._product(path) for setting, path in key.outputs.items()}
        products = [*makes, *outputs.values()]
        tells_of = json.loads(json.dumps(identity([*of], "of", self.folder)))  # as it is read back
        with self.lock(name):
            stored = self._load(name)
            if stored and self._still_holds(stored[0], key, products):
                if stored[0].get("of", []) != tells_of:
                    self._store(name, stored[1], {**stored[0], "of": tells_of})
                return files.decode_frame(name, stored[1], stored[0]["schema"])
            self._check_own(name)
            check_writable(name, self.path(name))
            self._begin(name, key, stored[0] if stored else {}, outputs.get("out"))
            began = time.perf_counter()
            result = function(*arguments, **settings)
            seconds = round(time.perf_counter() - began, 2)
            frame = result.to_frame() if hasattr(result, "to_frame") else result
            data, schema = files.encode_frame(name, frame)
            made = {product: self._made(name, product) for product in products}
            told = {"schema": schema, "inputs": key.inputs, "code": key.code, "makes": made, "of": tells_of}
            self._store(name, data, {**told, "seconds": seconds})
            _begun(self.path(name)).unlink(missing_ok=True)
        return files.decode_frame(name, data, schema)

    def write(self, name: str, frame: pd.DataFrame, /, **inputs: Any) -> Path:
        """Write a frame with its provenance; see ``frame`` for names and inputs."""
        self.path(name)
        data, schema = files.encode_frame(name, frame)
        return self._store(name, data, {"schema": schema, "inputs": named(inputs, "inputs", self.folder)})

    def read(self, name: str, /) -> pd.DataFrame:
        """Read a frame that this run holds.

        Raises:
            ValueError: when it is missing (says which notebook writes it and what is there), was altered, or
                is of variants that have changed since (``outdated``).
        """
        files.check_file(name)
        meta, data = self._stored(name)
        if why := self._outdated(name, meta):
            raise ValueError(why)
        return files.decode_frame(name, data, meta["schema"])

    def write_json(self, name: str, value: Any, /, **inputs: Any) -> Path:
        """Write plain data (dicts, lists, texts, numbers) as JSON with its provenance.

        Raises:
            ValueError: for a name that does not end in .json, or a value of another kind.
        """
        self.path(name)
        if not name.endswith(".json") or name.endswith(".meta.json"):
            raise ValueError(f"name must end in .json (and not in .meta.json), got {name!r}")
        with told(f"{name} must be plain data (dicts, lists, texts, numbers)", TypeError, ValueError):
            data = (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
        return self._store(name, data, {"inputs": named(inputs, "inputs", self.folder)})

    def read_json(self, name: str, /) -> Any:
        """Read what ``write_json`` wrote; errors as for ``read``."""
        return json.loads(self._stored(name)[1])

    def outdated(self, name: str, /) -> str:
        """Return why a result is of other variants than the run has now, and which notebook to run again.

        "" where each variant that it was made of is as it was, or is no more in the run, and where the result
        does not say which it was made of.
        """
        return self._outdated(name, self._stored(name)[0])

    def provenance(self, name: str, /) -> dict[str, Any]:
        """Return where a result came from: inputs, versions, commit, command, time, and its SHA-256."""
        return self._stored(name)[0]

    @looked_at
    def figure(self, fig: go.Figure, name: str, /, **options: Any) -> go.Figure:
        """Save a figure under ``figures/`` (see ``save_figure``) and return it for display."""
        from workbench.runs.figures import save_figure
        from workbench.runs.pages import SCRIPT

        save_figure(fig, self.path(f"figures/{name}"), script=self.path(SCRIPT), **options)
        return fig

    @looked_at
    def save_variant(self, variant: Variant) -> Variant:
        """Remember a variant under its name, replacing one of the same name."""
        if not os.access(self.folder, os.W_OK) and variant in self.variants():
            return variant
        self.write_json(f"variants/{variant.name}.json", asdict(variant))
        return variant

    def variant(self, name: str) -> Variant:
        """Return the variant of that name.

        Raises:
            ValueError: when the run has none; says which it has.
        """
        if not self.path(f"variants/{name}.json").is_file():
            known = [variant.name for variant in self.variants()]
            writer = notebook_that_writes(f"variants/{name}.json")
            way_out = f"; run notebook {writer} for this run" if writer and not known else ""
            raise ValueError(f"variant must be one of {known} in run {self.name!r}, got {name!r}{way_out}")
        if variant := _as_variant(self.read_json(f"variants/{name}.json")):
            return variant
        raise ValueError(f"variants/{name}.json of run {self.name!r} holds no variant; remove it")

    def variants(self) -> list[Variant]:
        """Return every variant of the run, oldest first; what else lies in their folder is left out."""
        names = [name for name in self.files() if name.startswith("variants/") and self.path(name).is_file()]
        names.sort(key=lambda name: (self.provenance(name)["created"], name))
        return [*filter(None, (_as_variant(self.read_json(name)) for name in names))]

    def files(self) -> list[str]:
        """Return the names of the results that this run holds, sorted."""
        sidecars = self.folder.rglob("[!.]*.meta.json")
        return sorted(s.relative_to(self.folder).as_posix().removesuffix(".meta.json") for s in sidecars)

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a file or folder of this run, "" for none."""
        path = self.path(name)
        return content_of(path) if path.exists() else ""

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Hold a result of this run alone: another process that wants it waits, and says so in one line."""
        return files.locked(self.path(name), name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = self.folder / ".lock"
        with told(f"{lock} cannot be locked", OSError), FileLock(lock, timeout=60):
            yield

    def _store(self, name: str, data: bytes, meta: Mapping[str, Any]) -> Path:
        """Write file, then sidecar, under the run's lock; after a kill in between their SHA-256 disagrees."""
        fingerprint = digest({"inputs": meta["inputs"], "code": meta.get("code")})
        own = {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "fingerprint": fingerprint}
        sidecar = {**own, **meta, **environment(), **meta}  # what was computed before stays as old as it is
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            path = files.write_bytes_atomic(self.path(name), data)
            files.write_text_atomic(_sidecar(path), json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n")
        return path

    def _load(self, name: str) -> tuple[dict[str, Any], bytes] | None:
        """Return sidecar and bytes when both are there and belong together, else None."""
        found = self._both(name)
        if found or not _sidecar(self.path(name)).is_file() or not os.access(self.folder, os.W_OK):
            return found
        with self._alone():  # another process may be between its two writes
            return self._both(name)

    def _both(self, name: str) -> tuple[dict[str, Any], bytes] | None:
        path = self.path(name)
        try:
            if not (path.is_file() and _sidecar(path).is_file()):  # a pipe might never end
                return None
            meta, data = json.loads(_sidecar(path).read_bytes()), path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return None
        whole = isinstance(meta, dict) and {"sha256", "created", "inputs"} <= meta.keys()
        return (meta, data) if whole and meta["sha256"] == hashlib.sha256(data).hexdigest() else None

    def _stored(self, name: str) -> tuple[dict[str, Any], bytes]:
        if found := self._load(name):
            return found
        what = f"is not in run {self.name!r} ({self.folder})"
        if self.path(name).is_file():
            what = f"in run {self.name!r} was altered or not finished since its provenance was written"
        writer = notebook_that_writes(name)
        way_out = f"; run notebook {writer} for this run" if writer else ""
        raise ValueError(f"{name} {what}{way_out}. There now: {', '.join(self.files()) or 'nothing'}")

    def _check_own(self, name: str) -> None:
        """Refuse a file that no call of this run wrote, or began to write before a kill."""
        path = self.path(name)
        if path.exists() and not (_sidecar(path).exists() or _begun(path).exists()):
            lacks = f"{path} is not of this run, it has no {_sidecar(path).name} beside it"
            raise ValueError(f"name {name!r}: {lacks}; rename or remove it, or give another name")

    def _still_holds(self, meta: Mapping[str, Any], key: Key, products: Iterable[str]) -> bool:
        made, wanted = meta.get("makes", {}), set(products)
        wanted |= {name for name in made if not os.path.isabs(name)}
        whole = wanted <= made.keys() and all(self._content(name) == made[name] for name in wanted)
        return whole and meta.get("fingerprint") == key.fingerprint

    def _outdated(self, name: str, meta: Mapping[str, Any]) -> str:
        made_of = {told["name"]: told for told in _variants_in([meta["inputs"], meta.get("of", [])])}
        for variant in self.variants() if made_of else []:
            told = made_of.get(variant.name, {})
            now = json.loads(json.dumps(identity(variant, folder=self.folder)))
            if variant.adapter and told.get("adapter") and not self.path(variant.adapter).exists():
                now["adapter"] = told["adapter"]  # a copy of the run without it
            if all(now.get(name) == value for name, value in told.items()):
                continue
            change = f"layers {told['removed']} out, {now['removed']} now"
            change = change if told["removed"] != now["removed"] else "another adapter or model now"
            writer = notebook_that_writes(name) or notebook_that_writes(name.replace(variant.name, "*"))
            again = f"run notebook {writer} again for this run" if writer else "make it again"
            return f"{name} is of an earlier {variant.name!r} of run {self.name!r} ({change}); {again}"
        return ""

    def _product(self, path: Path) -> str:
        """Return the name in the run of a path that lies in it, also by a link, else the whole path."""
        for whole in (os.path.abspath, os.path.realpath):
            here, folder = Path(whole(path)), Path(whole(self.folder))
            if here.is_relative_to(folder):
                return here.relative_to(folder).as_posix()
        return os.path.abspath(path)

    def _content(self, product: str) -> str:
        """Return the SHA-256 of a product in the run or elsewhere, "" for none."""
        if not os.path.isabs(product):
            return self.digest(product)
        return content_of(product) if os.path.isfile(product) or os.path.isdir(product) else ""

    def _begin(self, name: str, key: Key, stored: Mapping[str, Any], out: str | None) -> None:
        """Note what is being made, and move aside what was made under the same name from other inputs."""
        begun = _begun(self.path(name))
        owner = None  # of what lies at ``out``; None: made elsewhere, by a plan
        if begun.is_file():
            owner = begun.read_text()
        elif out and stored and stored.get("makes", {}).get(out) == self._content(out):
            owner = stored["fingerprint"]
        if stored and owner != key.fingerprint:
            changed = key.changed(dict(stored))
            say_together(name, str(changed), partial(_again, changed), stored.get("seconds", 0))
        if out and not os.path.isabs(out) and owner not in (None, key.fingerprint):
            self._set_aside(out)
        files.write_text_atomic(begun, key.fingerprint)

    def _set_aside(self, product: str) -> None:
        """Give a file or folder of other inputs another name, with what an unfinished call left beside it."""
        path = self.path(product)
        names = (f"{path.name}.before-{number}" for number in count(1))
        kept = next(name for name in names if not path.with_name(name).exists())
        for there in (path, path.with_name(f"{path.name}.unfinished")):
            if there.exists():
                os.replace(there, path.with_name(kept + there.name.removeprefix(path.name)))
                say_together(product, "kept", partial(_kept_as, kept))

    def _made(self, name: str, product: str) -> str:
        if not os.path.isabs(product) and not self.path(product).exists():
            raise ValueError(f"makes names {product!r}, but computing {name} did not write it")
        return self._content(product)


def _again(changed: list[str], names: list[str], seconds: float) -> str:
    """Say which results are computed again, since what is another, and how long they took."""
    rooms = [one.removeprefix("room ") for one in changed if one.startswith("room ")]
    why = [one for one in changed if not one.startswith("room ")]
    why += [f"version of the code ({', '.join(rooms)})"] if rooms else []
    took = "it took" if len(names) == 1 else "they took"
    last = f"; {took} {seconds:.0f} s last time" if seconds >= 10 else ""
    return f"{_several(names)}: computed again; another {', '.join(why) or 'file'}{last}"


def _kept_as(kept: str, names: list[str], _: float) -> str:
    if len(names) == 1:
        return f"{names[0]} was made from other inputs; it is kept as {kept}"
    return f"{_several(names)} were made from other inputs; they are kept, their last one as {kept}"


def _several(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


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


def _as_variant(stored: Any) -> Variant | None:
    """Return what a file in the folder of variants holds, None where that is no variant."""
    with suppress(LookupError, TypeError, ValueError):
        return Variant(**{**stored, "removed": tuple(stored["removed"])})
    return None


def _variants_in(inputs: Any) -> Iterator[dict[str, Any]]:
    """Yield every variant that recorded inputs hold."""
    if isinstance(inputs, dict) and {"name", "model", "removed", "adapter"} <= inputs.keys():
        yield inputs
    elif isinstance(inputs, dict | list):
        for value in inputs.values() if isinstance(inputs, dict) else inputs:
            yield from _variants_in(value)


def _begun(path: Path) -> Path:
    return path.with_name(f".{path.name}.begun")


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".meta.json")
