"""Train once, keep for ever: classifiers addressed by the hash of everything that made them.

An entry is a folder `<zoo>/<key>/` with model.safetensors, entry.json, and attack.safetensors where the attack
learnt something. It appears by one rename, so a killed run leaves nothing half-written; two processes that ask
for the same classifier train it once (a lock file per key); an entry whose bytes do not match its recorded hash
is reported, put aside, and trained again. No pickle is ever read. The training itself is in `classifier.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import classifier, data, fingerprint, models, train
from .classifier import Classifier, Spec, facts, trained
from .data import Dataset
from .settings import check_names

ENTRY, WEIGHTS, LEARNT = "entry.json", "model.safetensors", "attack.safetensors"


def folder(zoo: str | Path | None = None) -> Path:
    """Where entries lie: the argument, else REDBOOK_ZOO, else zoo/ under the data root."""
    return Path(zoo or os.environ.get("REDBOOK_ZOO") or data.root_folder() / "zoo")


def key(spec: Spec, dataset: Dataset) -> str:
    """Hash of the settings, the data's content, and the code that makes the network and trains it."""
    kinds = [type(attack) for attack in (spec.attack, *spec.attack.parts)] if spec.attack is not None else []
    files = {Path(train.__file__), Path(models.networks.__file__), *fingerprint.files_of(kinds)}
    code = [fingerprint.of_files(fingerprint.closure(files)), classifier.code()]
    return fingerprint.digest([spec.describe(), dataset.hash, code])[:20]


def get(
    spec: Spec | None = None,
    *,
    zoo: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
    **changes: Any,
) -> Classifier:
    """The classifier of `spec`: from the zoo if it is there, else trained and kept.

        zoo.get(base, attack=attack, seed=3)

    changes: fields of the spec that are to be others.
    zoo: the folder of entries, see `folder`.
    device: where the model and the images are put.
    Raises ValueError for a change that a Spec does not have.
    """
    spec = changed(spec or Spec(), changes)
    dataset = spec.load_data()
    path = folder(zoo) / key(spec, dataset)
    with alone(path.parent / "locks" / path.name):
        found = _read(path, spec, dataset)
        if found is None:
            made = trained(spec, dataset, device=device, name=path.name, progress=progress)
            found = _write(path, made)
    return replace(found, path=path).to(device)


def changed(spec: Spec, changes: Mapping[str, Any]) -> Spec:
    """The spec with these fields changed. Raises ValueError for one that it does not have."""
    check_names(Spec, changes, name="a Spec", word="field")
    return replace(spec, **changes)


def alone(path: Path) -> FileLock:
    """The lock file `path`, to be held with `with`: one process at a time is inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def _read(path: Path, spec: Spec, dataset: Dataset) -> Classifier | None:
    """The entry's classifier, or None when there is nothing usable; a damaged entry is named and put aside."""
    if not path.exists():
        return None
    try:
        model, record = load_entry(path, dataset)
        learnt = _learnt(path) if spec.attack and spec.attack.learns else {}
        said = facts(record)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as e:
        aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
        words = f"zoo entry {path} is damaged ({e}); it is put aside as {aside.name} and trained again"
        warnings.warn(words, stacklevel=3)
        os.replace(path, aside)
        return None
    attack = spec.attack and spec.attack.with_learnt(learnt)
    known: dict[str, Any] = {"attack": attack, "spec": spec, "record": record, "facts": said}
    return Classifier(name=path.name, model=model, dataset=dataset, **known)


def load_entry(path: Path, dataset: Dataset | None = None) -> tuple[nn.Sequential, dict[str, Any]]:
    """Model (CPU, evaluation mode) and record of a zoo folder.

    dataset: the images that it must have been trained on.
    Raises ValueError when the files do not match each other.
    """
    record = json.loads((path / ENTRY).read_text())
    recorded = {path / WEIGHTS: record["sha256"]}
    if "attack_sha256" in record:
        recorded[path / LEARNT] = record["attack_sha256"]
    for file, digest in recorded.items():
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != digest:
            raise ValueError(f"{file} has hash {found[:12]}…, recorded is {digest[:12]}…")
    kind = {"n_classes": record["n_classes"], "shape": tuple(record["shape"])}
    model = models.network(record["spec"]["network"], **kind)
    model.load_state_dict(load_file(path / WEIGHTS))
    return model.eval(), record


def _learnt(path: Path) -> dict[str, Tensor]:
    """What the attack learnt: copies, because load_file's tensors read the file as long as they live."""
    return {k: v.clone() for k, v in load_file(path / LEARNT).items()}


def _write(path: Path, made: Classifier) -> Classifier:
    """The entry's folder, whole or not at all; the classifier with what was recorded."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    record = dict(made.record)
    record["sha256"] = _save(made.model.state_dict(), partial / WEIGHTS)
    if made.attack is not None and made.attack.learnt:
        record["attack_sha256"] = _save(made.attack.learnt, partial / LEARNT)
    (partial / ENTRY).write_text(json.dumps(record, indent=1))
    os.replace(partial, path)
    return replace(made, record=record)


def _save(tensors: Mapping[str, Tensor], file: Path) -> str:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, file)
    return hashlib.sha256(file.read_bytes()).hexdigest()
