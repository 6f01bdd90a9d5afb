"""The classifier that a name or a file stands for: an entry of the zoo, or weights of somebody's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import data, models, zoo
from ..classifier import Classifier, facts
from ..settings import are_numbers, shown


class AuditError(ValueError):
    """A classifier, detector or setting that cannot be used; the message says what can."""


def suspect(
    entry: str,
    *,
    network: str | None = None,
    dataset: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """The classifier that `entry` names.

    entry: a zoo entry (its key, a unique beginning of it, or its folder), or a safetensors file.
    network, dataset: for a file, both are needed; for an entry, other images than it was trained on.
    mean, std: for a file, how its images were normalised, where that is not in the file: both, and of each one
        number or one for each channel.
    Raises AuditError, and ZooError when an entry is damaged.
    """
    path = locate(entry)
    if path.is_file():
        return _from_file(path, network, dataset, mean, std)
    for option, value in (("--network", network), ("--mean", mean), ("--std", std)):
        if value is not None:
            given = f"{option} {value if isinstance(value, str) else list(value)}"
            raise AuditError(f"{given}: for a file of weights; zoo entry {path.name} says that itself")
    return _from_zoo(path, dataset)


def locate(entry: str) -> Path:
    """The file, or the folder of the zoo entry, that `entry` names. Raises AuditError where there is none."""
    home = zoo.folder()
    path = Path(entry)
    try:
        there = bool(entry) and path.exists()
    except (OSError, ValueError):  # a name that no path can have
        there = False
    if there and path.is_dir() and not (path / zoo.ENTRY).is_file():
        raise AuditError(f"{path} is not a zoo entry: it has no {zoo.ENTRY}")
    if there and not path.is_dir() and not path.is_file():
        raise AuditError(f"{path} is neither a file nor a folder")
    if there:
        return path
    kept = [p.name for p in home.iterdir() if (p / zoo.ENTRY).is_file()] if home.is_dir() else []
    names = sorted(name for name in kept if entry and name.startswith(entry) and "." not in name)
    if entry in names or len(names) == 1:
        return home / (entry if entry in names else names[0])
    several = f"{len(names)} zoo entries begin with {shown(entry)}: {', '.join(names[:3])}"
    which = several if names else f"no file, and no zoo entry {shown(entry)} in {home}"
    raise AuditError(f"{which}; `redbook train` makes entries and prints their names")


def _from_zoo(path: Path, dataset: str | None) -> Classifier:
    record = zoo.read_record(path)
    spec, shape, n_classes = record["spec"], tuple(record["shape"]), record["n_classes"]
    known, trained_on = spec["dataset"], record["data_hash"]
    try:
        images = data.load(dataset or known, classes=spec["classes"], n_train=spec["n_train"])
    except data.DataError as e:
        if dataset is not None:
            raise
        raise AuditError(f"{path.name} was trained on {known}: {e}; --data names the images") from e
    if images.shape != shape or images.n_classes != n_classes:
        has = f"{images.n_classes} classes and images {images.shape}"
        raise AuditError(f"{images.name} has {has}; {path.name} takes {n_classes} classes and {shape}")
    if dataset is None and images.hash != trained_on:
        changed = f"{known} is not what it was when {path.name} was trained"
        raise AuditError(f"{changed}: name the images with --data")
    model = zoo.load_model(path, record)
    said = facts(record) | {"data": images.name}
    if images.hash != trained_on or record["metrics_code"] != zoo.metrics_code():
        del said["clean accuracy"]  # it is of other images, or of other code
    return Classifier(name=path.name, model=model, dataset=images, record=record, facts=said, path=path)


def _from_file(
    path: Path,
    network: str | None,
    dataset: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Classifier:
    if network is None or dataset is None:
        needed = "--network and --data are needed to say what they are of"
        raise AuditError(f"{path.name} is a file of weights: {needed}")
    if network not in models.NETWORKS:
        raise AuditError(f"--network {shown(network)}: allowed are {', '.join(models.NETWORKS)}")
    images = data.load(dataset)
    of_file: dict[str, Any] = {}
    said: dict[str, object] = {"network": network, "data": images.name, "file": str(path)}
    if mean is not None or std is not None:
        of_file = {"mean": mean, "std": std}
        for option, values in of_file.items():
            of_file[option] = _channels(option, values, images.shape[0])
        said["normalisation"] = f"mean {of_file['mean']}, std {of_file['std']}"
    model = models.load_weights(path, network, n_classes=images.n_classes, shape=images.shape, **of_file)
    return Classifier(name=path.name, model=model, dataset=images, facts=said, path=path)


def _channels(option: str, values: Sequence[float] | None, channels: int) -> list[float]:
    """A number for each channel; one stands for all. Images are in [0, 1], and so are their mean and spread."""
    if values is None:
        raise AuditError(f"no --{option}: --mean and --std are needed together")
    many = list(values) * channels if len(values) == 1 else list(values)
    bounds: dict[str, float] = {"least": 0} if option == "mean" else {"above": 0}
    if not are_numbers(many, channels, **bounds, most=1):
        low = "from 0" if option == "mean" else "above 0 and up"
        wanted = f"a number {low} to 1, as images in [0, 1] have it, for each of {channels} channels"
        raise AuditError(
            f"--{option} {','.join(f'{v:g}' for v in values)}: {wanted} is needed, or one for all"
        )
    return [float(v) for v in many]
