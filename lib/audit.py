"""Point a detector at a classifier: an entry of the zoo, or a safetensors file of one's own.

Nothing of a model file is ever run: weights are read as tensors,
into an architecture of this package that the user names.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from . import anomaly, data, detectors, experiments, models, zoo
from .report import Report


class AuditError(ValueError):
    """A classifier, detector or setting that cannot be used; the message says what can."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A classifier to be scanned, its image set, and whatever is known of it."""

    name: str
    model: nn.Module
    dataset: data.Dataset
    facts: Mapping[str, object]


def suspect(entry: str, *, network: str | None = None, dataset: str | None = None) -> Suspect:
    """The classifier that `entry` names: a zoo entry (its key, a unique beginning of it, or its folder),
    or a safetensors file.

    network, dataset: for a file, both are needed.
    Raises AuditError, or ValueError of the zoo when an entry is damaged.
    """
    path = Path(entry)
    if path.is_file():
        return _from_file(path, network, dataset)
    home = zoo.folder()
    found = (
        [path]
        if path.is_dir()
        else sorted(
            p for p in home.glob(f"{_plain(entry)}*") if "." not in p.name and (p / "entry.json").is_file()
        )
    )
    if len(found) != 1:
        which = (
            f"{len(found)} zoo entries begin with '{entry}'"
            if found
            else f"no file, and no zoo entry '{entry}' in {home}"
        )
        raise AuditError(f"{which}; `redbook train` makes entries and prints their names")
    if not (found[0] / "entry.json").is_file():
        raise AuditError(f"{found[0]} is not a zoo entry: it has no entry.json")
    try:
        model, record = zoo.load_entry(found[0])
        spec, shape = record["spec"], tuple(record["shape"])
        subset = {"classes": spec["classes"], "n_train": spec["n_train"]}
        accuracy, trained_on, known = f"{record['metrics']['cta']:.4f}", record["data_hash"], spec["dataset"]
        facts = {"network": spec["network"], "data": dataset or known, "clean accuracy": accuracy}
    except (KeyError, TypeError, RuntimeError, SafetensorError) as e:
        raise AuditError(f"zoo entry {found[0]} is damaged: {e}") from e
    images = data.load(dataset or known, **subset)
    if images.shape != shape or images.n_classes != record["n_classes"]:
        has = f"{images.n_classes} classes and images {images.shape}"
        raise AuditError(
            f"{images.name} has {has}; {found[0].name} takes {record['n_classes']} classes and {shape}"
        )
    if dataset is None and images.hash != trained_on:
        raise AuditError(
            f"{known} is not what it was when {found[0].name} was trained: name the images with --data"
        )
    return Suspect(name=found[0].name, model=model, dataset=images, facts=facts)


def _plain(entry: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "", entry) or "-"


def _from_file(path: Path, network: str | None, dataset: str | None) -> Suspect:
    if network is None or dataset is None:
        raise AuditError(
            f"{path.name} is a file of weights: --network and --data are needed to say what they are of"
        )
    images = data.load(dataset)
    zero, one = [0.0] * images.shape[0], [1.0] * images.shape[0]
    model = models.build(network, n_classes=images.n_classes, shape=images.shape, mean=zero, std=one)
    try:
        weights = load_file(path)
    except SafetensorError as e:
        raise AuditError(
            f"{path} is not a safetensors file ({e}); pickled checkpoints are not read, for they can run code"
        ) from e
    # As the zoo writes them (normalisation, then network), or the network alone, for images in [0, 1].
    whole = all(name.startswith(("0.", "1.")) for name in weights) and "0.mean" in weights
    try:
        (model if whole else model[1]).load_state_dict(weights)
    except RuntimeError as e:
        first = " ".join(str(e).split())
        raise AuditError(f"{path.name} does not fit network '{network}' for {dataset}: {first[:300]}") from e
    facts = {"network": network, "data": images.name, "file": str(path)}
    return Suspect(name=path.name, model=model.eval(), dataset=images, facts=facts)


def detector(name: str, settings: Mapping[str, str] | None = None) -> tuple[str, detectors.Detector]:
    """Registered name and detector; `name` may leave out dashes.
    Settings are text, read as the type of their default.
    """
    names = {re.sub(r"[^a-z0-9]", "", known): known for known in detectors.DETECTORS}
    known = names.get(re.sub(r"[^a-z0-9]", "", name.lower()))
    if known is None:
        raise AuditError(f"no detector '{name}': allowed are {', '.join(detectors.DETECTORS)}")
    defaults = {f.name: f.default for f in fields(detectors.DETECTORS[known])}  # type: ignore[arg-type]
    given = {key: _setting(known, key, text, defaults.get(key)) for key, text in (settings or {}).items()}
    try:
        return known, detectors.build(known, **given)
    except TypeError as e:
        raise AuditError(f"{known}: {e}") from e


def _setting(detector: str, name: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise AuditError(f"{detector}: {name} = {text!r}: true or false is needed")
        return text.lower() == "true"
    if isinstance(default, (int, float)):
        try:
            return type(default)(text)
        except ValueError:
            raise AuditError(
                f"{detector}: {name} = {text!r}: a value of type {type(default).__name__} is needed"
            ) from None
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def scan(
    subject: Suspect,
    name: str,
    *,
    n: int,
    rule: str,
    seed: int = 0,
    device: str = "cpu",
    level: float = 0.05,
    settings: Mapping[str, str] | None = None,
    progress: bool = False,
) -> Report:
    """Scan with n clean, correctly classified test images per class, and judge by one rule;
    the others' verdicts come along.

    Raises AuditError for bad input before the scan begins.
    """
    if rule not in anomaly.RULES:
        raise AuditError(f"no rule '{rule}': allowed are {', '.join(anomaly.RULES)}")
    if n < 1:
        raise AuditError(f"n = {n}: at least one clean image per class is needed")
    if rule in ("gamma", "calibrated") and (k := subject.dataset.n_classes) < 3:
        raise AuditError(f"rule '{rule}' judges three classes or more, not {k}: take mad or mad-or-quarter")
    known, how = detector(name, settings)
    model, images = subject.model.to(device), data.to(subject.dataset, device)
    clean = data.clean_per_class(
        lambda x: models.predict(model, x),
        images.test_images,
        images.test_labels,
        n,
        n_classes=images.n_classes,
        generator=torch.Generator().manual_seed(seed),
    )
    found = how.scan(model, clean, generator=torch.Generator(device).manual_seed(seed), progress=progress)
    verdicts = {rule: anomaly.judge(found.norms, rule, pair_norms=found.pair_norms, level=level)}
    for other in (
        r for r in anomaly.RULES if r != rule
    ):  # beside the deciding one; some cannot judge every set of statistics
        with contextlib.suppress(anomaly.AnomalyError):
            verdicts[other] = anomaly.judge(found.norms, other, pair_norms=found.pair_norms, level=level)
    facts = dict(subject.facts) | {"clean images per class": n, "seed": seed} | experiments.provenance(device)
    facts["when"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return Report(
        subject=subject.name,
        classes=images.classes,
        scan=found,
        rule=rule,
        verdicts=verdicts,
        facts=facts,
        detector=known,
    )


def throughput(network: str, dataset: str, *, n: int, seconds: float, device: str) -> tuple[float, int]:
    """Image-gradients per second of a K-class all-to-one step on a fresh network,
    and images per step, K (K - 1) n.
    """
    images = data.to(data.load(dataset), device)
    k = images.n_classes
    model = models.build(network, n_classes=k, shape=images.shape).to(device).eval().requires_grad_(False)
    batch = k * (k - 1) * n
    x = images.test_images[torch.arange(batch) % len(images.test_images)].requires_grad_(True)

    def step() -> None:
        torch.autograd.grad(model(x).logsumexp(1).sum(), x)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    step()  # warm-up: first calls allocate and choose kernels
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        done += batch
    return done / (time.perf_counter() - start), batch
