"""Train once, keep for ever: classifiers addressed by the hash of everything that made them.

An entry is a folder `<zoo>/<key>/` with model.safetensors, entry.json, and attack.safetensors where the attack
learnt something. It appears by one rename, so a killed run leaves nothing half-written; two processes that ask
for the same classifier train it once (a lock file per key); an entry whose bytes do not match its recorded hashes
is reported, put aside, and trained again. One whose metrics were made by other code than today's is measured
again. No pickle is ever read. The training itself is in `classifier.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import data, files, fingerprint, metrics, models
from .classifier import Classifier, Spec, facts, trained, training_code
from .data import Dataset
from .settings import check_names, of_type, shown, type_name

ENTRY, WEIGHTS, LEARNT = "entry.json", "model.safetensors", "attack.safetensors"
# What a record must hold for those who read it; it may hold more.
RECORD = {
    "spec": dict[str, Any],
    "data_hash": str,
    "shape": tuple[int, int, int],
    "n_classes": int,
    "metrics": dict[str, Any],
    "metrics_code": str,
    "provenance": dict[str, Any],
    "sha256": str,
}
SPEC = {"dataset": str, "network": str, "classes": list[int] | None, "n_train": int | None}


class ZooError(ValueError):
    """An entry that is damaged, or a zoo that cannot be written."""


def folder(zoo: str | Path | None = None) -> Path:
    """Where entries lie: the argument, else REDBOOK_ZOO, else zoo/ under the data root."""
    return Path(zoo or os.environ.get("REDBOOK_ZOO") or data.root_folder() / "zoo")


def key(spec: Spec, dataset: Dataset) -> str:
    """Hash of the settings, the data's content, and the code that makes the network and trains it."""
    return fingerprint.digest([spec.describe(), dataset.hash, training_code(spec)])[:20]


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
    Raises ValueError for a change that a Spec does not have, ZooError for a zoo that cannot be written.
    """
    spec = changed(spec or Spec(), changes)
    dataset = spec.load_data()
    path = folder(zoo) / key(spec, dataset)
    with ExitStack() as inside:
        try:
            inside.enter_context(files.alone(path.parent / "locks" / path.name))
        except OSError as e:
            where = f"the zoo {path.parent} cannot be written ({e.strerror})"
            raise ZooError(f"{where}: REDBOOK_ZOO, or REDBOOK_DATA, names another place") from e
        found = _read(path, spec, dataset)
        if found is None:
            made = trained(spec, dataset, device=device, name=path.name, progress=progress)
            found = _write(path, made)
        elif found.record["metrics_code"] != metrics_code():
            found = _measured_again(path, found.to(device))
    return replace(found, path=path).to(device)


def changed(spec: Spec, changes: Mapping[str, Any]) -> Spec:
    """The spec with these fields changed. Raises ValueError for one that it does not have."""
    check_names(Spec, changes, name="a Spec", word="field")
    return replace(spec, **changes)


def _read(path: Path, spec: Spec, dataset: Dataset) -> Classifier | None:
    """The entry's classifier, or None when there is nothing usable; a damaged entry is named and put aside."""
    if not path.exists():
        return None
    try:
        record = read_record(path)
        if (record["data_hash"], record["n_classes"]) != (dataset.hash, dataset.n_classes):
            raise ZooError(f"{path / ENTRY} is of other images than {dataset.name}")
        learns = spec.attack is not None and spec.attack.learns
        if learns and "attack_sha256" not in record:
            raise ZooError(f"{path / ENTRY} does not record what the attack has learnt")
        model = load_model(path, record)
        learnt = _learnt(path) if learns else {}
    except (ZooError, SafetensorError) as e:
        aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
        words = f"zoo entry {path} is damaged ({e}); it is put aside as {aside.name} and trained again"
        warnings.warn(words, stacklevel=3)
        os.replace(path, aside)
        return None
    attack = spec.attack and spec.attack.with_learnt(learnt)
    known: dict[str, Any] = {"attack": attack, "spec": spec, "record": record, "facts": facts(record)}
    return Classifier(name=path.name, model=model, dataset=dataset, **known)


def read_record(path: Path) -> dict[str, Any]:
    """What entry.json of a zoo folder says.

    Raises ZooError, naming the file and what is wrong, where it is not what was written.
    """
    file = path / ENTRY
    if not file.is_file():
        raise ZooError(f"{file} is not there")
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as e:
        raise ZooError(f"{file} cannot be read: {e}") from e
    if not isinstance(record, dict):
        raise ZooError(f"{file} holds {shown(record)}: a mapping is needed")
    if record.get("signed") != signed(record)["signed"]:
        raise ZooError(f"{file} does not match its own hash: it was changed, or made by an older release")
    for prefix, table, hints in (
        ("", record, RECORD),
        ("spec.", record.get("spec"), SPEC),
        ("metrics.", record.get("metrics"), {"cta": float}),
    ):
        for name, hint in hints.items():
            value = table.get(name) if isinstance(table, dict) else None
            try:
                of_type(value, hint)
            except ValueError:
                wanted = f"a value of type {type_name(hint)} is needed"
                raise ZooError(f"{file}: {prefix}{name} = {shown(value)}: {wanted}") from None
    if not 0 <= record["metrics"]["cta"] <= 1:
        raise ZooError(f"{file}: metrics.cta = {record['metrics']['cta']}: a share from 0 to 1 is needed")
    return record


def signed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a hash of all else in it, so that a later change is noticed."""
    rest = {name: value for name, value in record.items() if name != "signed"}
    return rest | {"signed": fingerprint.digest(rest)}


def load_model(path: Path, record: Mapping[str, Any]) -> nn.Sequential:
    """The model of a zoo folder, on the CPU, in evaluation mode.

    Raises ZooError, naming the file, when it does not match the record.
    """
    recorded = {path / WEIGHTS: record["sha256"]}
    if "attack_sha256" in record:
        recorded[path / LEARNT] = record["attack_sha256"]
    for file, digest in recorded.items():
        if not file.is_file():
            raise ZooError(f"{file} is not there")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != digest:
            raise ZooError(f"{file} has hash {found[:12]}…, recorded is {shown(digest)[:13]}…")
    kind = {"n_classes": record["n_classes"], "shape": tuple(record["shape"])}
    try:
        model = models.network(record["spec"]["network"], **kind)
        models.fill(model, load_file(path / WEIGHTS))
    except (ValueError, RuntimeError, SafetensorError) as e:
        raise ZooError(f"{path / WEIGHTS}: {' '.join(str(e).split())[:300]}") from e
    return model.eval()


def metrics_code() -> str:
    """Print of the code that the metrics on record depend on."""
    measuring = fingerprint.closure([Path(metrics.__file__), Path(models.ask.__file__)])
    here = fingerprint.of_functions(Classifier.evaluate, Classifier.predict)
    return fingerprint.digest([fingerprint.of_files(measuring), here])


def _measured_again(path: Path, found: Classifier) -> Classifier:
    """An entry whose metrics are those of other code, with those of today's, and its record so rewritten."""
    new = {"metrics": found.evaluate(), "metrics_code": metrics_code()}
    record = signed({**found.record, **new})
    with files.written(path / ENTRY) as partial:
        partial.write_text(json.dumps(record, indent=1))
    return replace(found, record=record, facts=facts(record))


def _learnt(path: Path) -> dict[str, Tensor]:
    """What the attack learnt: copies, because load_file's tensors read the file as long as they live."""
    return {k: v.clone() for k, v in load_file(path / LEARNT).items()}


def _write(path: Path, made: Classifier) -> Classifier:
    """The entry's folder, whole or not at all; the classifier with what was recorded."""
    record = dict(made.record)
    with files.written(path) as partial:
        partial.mkdir()
        record["sha256"] = _save(made.model.state_dict(), partial / WEIGHTS)
        if made.attack is not None and made.attack.learnt:
            record["attack_sha256"] = _save(made.attack.learnt, partial / LEARNT)
        record = signed(record | {"metrics_code": metrics_code()})
        (partial / ENTRY).write_text(json.dumps(record, indent=1))
    return replace(made, record=record)


def _save(tensors: Mapping[str, Tensor], file: Path) -> str:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, file)
    return hashlib.sha256(file.read_bytes()).hexdigest()
