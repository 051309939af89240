"""The folders of a training, the adapter's and that of unfinished work: whose they are, and what is done."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from workbench.checks import read_whole
from workbench.digests import digest, modules_digest, tensor_digest
from workbench.healing.records import RECORD, SETTINGS, WEIGHTS, checked_adapter, read_record, write_record
from workbench.models.layers import unwrap
from workbench.runs.files import atomic_folder

#: beside an adapter, and beside the checkpoints of one that is not finished
LOG, WORK, CHECKPOINTS = "log.jsonl", "work.json", "checkpoints"
#: the last file of a checkpoint
STATE = "trainer_state.json"
#: what heal writes into a folder, and the file without which it is not heal's
_ADAPTER = (RECORD, {RECORD, LOG, SETTINGS, WEIGHTS})
_UNFINISHED = (WORK, {WORK, CHECKPOINTS})


def adapter_folder(out: str | Path) -> Path:
    """Return the folder that ``heal`` is to write, a link followed.

    Raises:
        ValueError: for a file, or a folder that is neither empty nor one that ``heal`` made; the
            same for that of unfinished work beside it. Nothing is changed then.
    """
    out = Path(out)
    if out.is_symlink() or out.name in ("", ".."):
        out = out.resolve()
    if files := [one for one in (out, *out.parents) if one.exists() and not one.is_dir()]:
        raise ValueError(f"out must be the path of a folder, {files[0]} is a file")
    _check_own(out, *_ADAPTER, also=True)
    _check_own(unfinished_folder(out), *_UNFINISHED)
    return out


def unfinished_folder(out: Path) -> Path:
    """Return the folder beside an adapter's that holds the checkpoints of a training."""
    out = out.absolute()
    return out.with_name(f"{out.name}.unfinished")


def clear(unfinished: Path) -> None:
    """Delete a folder of unfinished work; what marks it as heal's goes last, in case of a kill."""
    for folder in (unfinished / CHECKPOINTS, unfinished):
        shutil.rmtree(folder, ignore_errors=True)


def is_done(out: Path, work: dict[str, Any], model: Any, *, overwrite: bool) -> bool:
    """Return whether a folder holds the whole adapter of this very work, in whatever type it was trained.

    Raises:
        ValueError: for an adapter of other work, or one that is damaged, without ``overwrite``; with it,
            where the folder also holds files that ``heal`` did not write.
    """
    if not (out / RECORD).is_file():
        return False
    try:
        read_record(out)
        if same_work(out / RECORD, work, overwrite, model):
            checked_adapter(out)
            return True
    except ValueError:
        if not overwrite:
            raise
    _check_own(out, *_ADAPTER)
    return False


def same_work(record: Path, work: dict[str, Any], overwrite: bool, model: Any = None) -> bool:
    """Return whether a folder's record tells of this very work, False where there is no folder.

    Args:
        record: the file in the folder.
        work: what decides the result, as plain values.
        overwrite: whether other work may be lost.
        model: where given, a record of the same weights in another type is one of the same work.

    Raises:
        ValueError: for other work that must not be lost; names what differs.
    """
    if not record.parent.exists():
        return False
    found, wanted = _read(record), json.loads(json.dumps(work))
    differ = [key for key, value in wanted.items() if found.get(key) != value]
    differ += [key for key in ("held_out", "objective") if key in found and key not in wanted]
    if "model" in differ and _same_model(found, wanted["model"], model):
        differ.remove("model")
    if differ and not overwrite:
        dtypes = [told.get("model", {}).get("dtype") for told in (found, wanted)]
        types = f" (trained in {dtypes[0]}, the model is {dtypes[1]})" if len({*dtypes} - {None}) > 1 else ""
        other = f"another {', another '.join(differ)}{types}"
        raise ValueError(f"out: {record.parent} was made from {other}; give another out, or overwrite=True")
    return not differ


def values_digest(model: Any) -> str:
    """Return a digest of a model's parameters rounded to bfloat16 and of its settings, but for their type.

    Weights in bfloat16 have the digest of those in float32 that they were rounded from, or read into.
    """
    base = unwrap(model)
    if any(parameter.is_meta for parameter in base.parameters()):
        return "offloaded"
    weights = {name: tensor_digest(value.to(torch.bfloat16)) for name, value in base.named_parameters()}
    # what differs from the defaults: another version of transformers has other entries
    settings = [_without_types(base.config.to_diff_dict()), modules_digest(base)]
    return digest({"weights": weights, "settings": settings})[:16]


def last_checkpoint(folder: str | Path) -> str | None:
    """Return the newest checkpoint in a folder that was written to its end, None when there is none."""
    found = [path for path in Path(folder).glob("checkpoint-*") if _is_whole(path)]
    newest = max(found, key=lambda path: int(path.name.split("-")[1]), default=None)
    return None if newest is None else str(newest)


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end, and is still all there.

    The Trainer's state is its last file. Without optimizer or schedule the Trainer would begin them anew, and
    end with another adapter.
    """
    parts = [list(checkpoint.glob(name)) for name in ("optimizer*", "scheduler.pt", "rng_state*", WEIGHTS)]
    saved = [path for part in parts[:-1] for path in part]
    whole = all(parts) and all(path.is_dir() or zipfile.is_zipfile(path) for path in saved)
    return whole and bool(_read(checkpoint / STATE))


def store(out: Path, checkpoint: Path, log: pd.DataFrame, record: dict[str, Any]) -> None:
    """Make the adapter's folder of a checkpoint, the log and the record, as a whole."""
    with atomic_folder(out) as folder:
        for name in (WEIGHTS, SETTINGS):
            shutil.copyfile(checkpoint / name, folder / name)
        rows = log.astype(object).where(log.notna(), None).to_dict("records")
        (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        write_record(folder, record)


def read_log(out: Path) -> pd.DataFrame:
    """Return the log of a finished training; its ``attrs`` say what was cut, and in which type it ran."""
    lines = (out / LOG).read_text(encoding="utf-8").splitlines()
    log, record = pd.DataFrame(map(json.loads, lines)), read_record(out)
    log.attrs.update(log_attributes(record))
    return log


def log_attributes(record: dict[str, Any]) -> dict[str, Any]:
    """Return what ``log.attrs`` says: responses cut and left out, the model's type, the update kept."""
    kept = {"kept_step": record["kept_step"]} if "kept_step" in record else {}
    return {"cut": record["cut"], "left_out": record["left_out"], "dtype": record["model"]["dtype"], **kept}


def _check_own(folder: Path, mark: str, own: set[str], *, also: bool = False) -> None:
    """Refuse a folder without the mark; and, unless ``also``, one with further files."""
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    there = {name for name in there if not (name.startswith(".") and name.endswith(".tmp"))}  # of a kill
    others = sorted(there - own)
    if there and (mark not in there or (others and not also)):
        holds = f"{', '.join(others[:3]) or 'files'} and {'a' if mark in there else 'no'} {mark}"
        raise ValueError(f"out: {folder} holds {holds}: heal did not make it; give another out")


def _read(record: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(read_whole(record)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _same_model(found: dict[str, Any], here: dict[str, Any], model: Any) -> bool:
    told = found.get("model") or {}
    # the name may be another: a folder that was moved
    differ = {name for name in here if name not in ("id", "revision") and told.get(name) != here[name]}
    if not differ or model is None or differ - {"dtype", "weights", "settings"}:
        return not differ
    return bool(found.get("values") == values_digest(model) != "offloaded")


def _without_types(config: Any) -> Any:
    if not isinstance(config, dict):
        return repr(config)
    names = {"dtype", "torch_dtype", "_name_or_path", "transformers_version", "use_cache"}
    return {str(key): _without_types(value) for key, value in config.items() if key not in names}
