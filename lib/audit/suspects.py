"""The classifier that a name or a file stands for: an entry of the zoo, or weights of somebody's own."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError

from .. import data, models, zoo
from ..classifier import Classifier, facts


class AuditError(ValueError):
    """A classifier, detector or setting that cannot be used; the message says what can."""


def suspect(entry: str, *, network: str | None = None, dataset: str | None = None) -> Classifier:
    """The classifier that `entry` names.

    entry: a zoo entry (its key, a unique beginning of it, or its folder), or a safetensors file.
    network, dataset: for a file, both are needed; for an entry, other images than it was trained on.
    Raises AuditError, or ValueError of the zoo when an entry is damaged.
    """
    path = Path(entry)
    return _from_file(path, network, dataset) if path.is_file() else _from_zoo(_entry(entry), dataset)


def _entry(entry: str) -> Path:
    """The folder of a zoo entry."""
    home, path = zoo.folder(), Path(entry)
    beginning = re.sub(r"[^A-Za-z0-9_.-]", "", entry) or "-"
    kept = (p for p in home.glob(f"{beginning}*") if "." not in p.name and (p / zoo.ENTRY).is_file())
    found = [path] if path.is_dir() else sorted(kept)
    if len(found) != 1:
        several = f"{len(found)} zoo entries begin with '{entry}'"
        which = several if found else f"no file, and no zoo entry '{entry}' in {home}"
        raise AuditError(f"{which}; `redbook train` makes entries and prints their names")
    if not (found[0] / zoo.ENTRY).is_file():
        raise AuditError(f"{found[0]} is not a zoo entry: it has no {zoo.ENTRY}")
    return found[0]


def _from_zoo(path: Path, dataset: str | None) -> Classifier:
    try:
        model, record = zoo.load_entry(path)
        spec, shape = record["spec"], tuple(record["shape"])
        subset = {"classes": spec["classes"], "n_train": spec["n_train"]}
        known, trained_on, n_classes = spec["dataset"], record["data_hash"], record["n_classes"]
        said = facts(record) | {"data": dataset or known}
    except (KeyError, TypeError, RuntimeError, SafetensorError) as e:
        raise AuditError(f"zoo entry {path} is damaged: {e}") from e
    images = data.load(dataset or known, **subset)
    if images.shape != shape or images.n_classes != n_classes:
        has = f"{images.n_classes} classes and images {images.shape}"
        raise AuditError(f"{images.name} has {has}; {path.name} takes {n_classes} classes and {shape}")
    if dataset is None and images.hash != trained_on:
        changed = f"{known} is not what it was when {path.name} was trained"
        raise AuditError(f"{changed}: name the images with --data")
    return Classifier(name=path.name, model=model, dataset=images, record=record, facts=said, path=path)


def _from_file(path: Path, network: str | None, dataset: str | None) -> Classifier:
    if network is None or dataset is None:
        needed = "--network and --data are needed to say what they are of"
        raise AuditError(f"{path.name} is a file of weights: {needed}")
    images = data.load(dataset)
    model = models.load_weights(path, network, n_classes=images.n_classes, shape=images.shape)
    said = {"network": network, "data": images.name, "file": str(path)}
    return Classifier(name=path.name, model=model, dataset=images, facts=said, path=path)
