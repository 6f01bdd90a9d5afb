"""One row to be: a classifier and a detector, or a classifier alone with what its attack does.

A task is plain settings. Its `key` is a hash of them and names its row; `run` trains (or fetches) the classifier
and returns the row, flat and tidy, with where it comes from. Rows hold raw statistics beside every rule's
verdict, never a decision alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from .. import anomaly, attacks, fingerprint, metrics, zoo
from ..attacks import AttackError, InputAware
from ..attacks.base import Attack, SingleAttack
from ..classifier import Classifier, Spec
from ..detectors import Scan, named
from ..settings import check_names


class Task(Protocol):
    """What a sweep can run."""

    @property
    def spec(self) -> Spec:
        """The classifier that it begins with."""

    @property
    def key(self) -> str:
        """Hash of everything in the task; names the row."""

    def run(self, *, device: str = "cpu", zoo_folder: str | Path | None = None) -> dict[str, Any]:
        """The row."""


@dataclass(frozen=True, kw_only=True)
class ScanTask:
    """A classifier, and a detector with n clean images per class."""

    spec: Spec
    group: str
    detector: str
    n: int
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Hash of everything in the task; names the row."""
        return _key([self.spec.describe(), self.group, self.detector, self.n, self.settings])

    def __str__(self) -> str:
        return f"{self.detector} on {self.spec.dataset} {self.group} seed {self.spec.seed}"

    def run(self, *, device: str = "cpu", zoo_folder: str | Path | None = None) -> dict[str, Any]:
        """Train (or fetch) the classifier, scan it, and judge the scan with every rule that can."""
        classifier = zoo.get(self.spec, zoo=zoo_folder, device=device)
        scan = classifier.scan(named(self.detector, **dict(self.settings)), self.n)
        attack, target = self.spec.attack, _first_target(self.spec.attack)
        row = _of_classifier(self.key, classifier) | {
            "group": self.group,
            "attack": json.dumps(attacks.describe(attack)),
            "target": target,
            "n_sources": len(attack.parts[0].source_classes(scan.n_classes)) if attack else 0,
            "detector": self.detector,
            "n": self.n,
            "settings": json.dumps(dict(self.settings)),
            "cta": classifier.metrics["cta"],
            "asr": classifier.metrics.get("asr"),
            "collateral": classifier.metrics.get("collateral"),
            "zoo_key": classifier.name,
        }
        return row | _findings(scan, target) | fingerprint.provenance(device)


@dataclass(frozen=True, kw_only=True)
class AttackTask:
    """A classifier with an attack, beside a clean one of the same kind and seed.

    name: what to call the attack; where the spec has none, it is the one of that name in `attacks.gallery`.
    target: the attack's, where it comes from the gallery.
    varied: settings of the attack that the table is to have as columns.
    """

    spec: Spec
    name: str
    target: int = 1
    varied: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Hash of everything in the task; names the row."""
        return _key([self.spec.describe(), self.name, self.target, self.varied])

    def __str__(self) -> str:
        return f"{self.name} on {self.spec.dataset} seed {self.spec.seed}"

    def run(self, *, device: str = "cpu", zoo_folder: str | Path | None = None) -> dict[str, Any]:
        """Train (or fetch) both; ASR, CTA, collateral, norm of the change, seconds.

        `cross_trigger` is, for input-aware attacks, the accuracy on images with another image's trigger.
        """
        attack = self.spec.attack or self._from_gallery()
        classifier = zoo.get(self.spec, attack=attack, zoo=zoo_folder, device=device)
        clean = zoo.get(self.spec, attack=None, zoo=zoo_folder, device=device)
        found, clean_cta = classifier.metrics, clean.metrics["cta"]
        row = _of_classifier(self.key, classifier) | {
            "attack": self.name,
            **{name: getattr(attack, name) for name in self.varied},
            "asr": found["asr"],
            "cta": found["cta"],
            "clean_cta": clean_cta,
            "collateral": found["collateral"],
            "cross_trigger": _cross_trigger(classifier),
            "norm": _norm(classifier),
            "seconds": classifier.record["provenance"]["seconds"],
        }
        return row | fingerprint.provenance(device)

    def _from_gallery(self) -> Attack:
        images = self.spec.load_data()
        kind: dict[str, Any] = {"target": self.target, "n_classes": images.n_classes}
        return attacks.gallery(images.shape, **kind, seed=self.spec.seed)[self.name]


def of_gallery(
    spec: Spec, *, names: Iterable[str] | None = None, seeds: Sequence[int] = (0,), target: int = 1
) -> list[AttackTask]:
    """The attacks of the field guide on one kind of classifier, one task per seed and attack.

    names: some of `attacks.gallery`; default all.
    Raises AttackError for an unknown name.
    """
    known = attacks.gallery((3, 32, 32))
    chosen = list(known) if names is None else list(names)
    if unknown := [name for name in chosen if name not in known]:
        raise AttackError(f"no attack {unknown[0]!r} in the gallery: allowed are {', '.join(known)}")
    specs = [replace(spec, attack=None, seed=seed) for seed in seeds]
    return [AttackTask(spec=one, name=name, target=target) for one in specs for name in chosen]


def varied(
    spec: Spec, attack: SingleAttack, *, seeds: Sequence[int] = (0,), **settings: Sequence[Any]
) -> list[AttackTask]:
    """One attack with its settings varied: `varied(spec, attack, amplitude=[4, 8], seeds=range(3))`.

    A task for every value and seed, and for every combination where more than one setting is given. Each seed draws
    anew what the attack leaves open, such as a place; what `attacks.group` sets by seed, a phase, stays as it is.
    Raises AttackError for a setting that the attack does not have.
    """
    check_names(type(attack), settings, name=type(attack).__name__, error=AttackError)
    return [
        AttackTask(
            spec=replace(spec, attack=replace(attack, seed=seed, **changes), seed=seed),
            name=type(attack).__name__,
            varied=tuple(settings),
        )
        for changes in _combinations(settings)
        for seed in seeds
    ]


def _combinations(settings: dict[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    if not settings:
        yield {}
        return
    name, *rest = settings
    for value in settings[name]:
        yield from ({name: value} | more for more in _combinations({key: settings[key] for key in rest}))


def _key(plain: list[Any]) -> str:
    return fingerprint.digest(plain)[:20]


def _of_classifier(key: str, classifier: Classifier) -> dict[str, Any]:
    spec = classifier.spec
    assert spec is not None  # it comes from the zoo
    plain = {"dataset": spec.dataset, "network": spec.network, "recipe": str(spec.recipe), "seed": spec.seed}
    return {"key": key, **plain}


def _first_target(attack: Attack | None) -> int | None:
    return attack.parts[0].target if attack else None


def _findings(scan: Scan, target: int | None) -> dict[str, Any]:
    """Raw statistics, cost, and every rule's verdict; empty where a rule cannot judge, as on two classes."""
    found: dict[str, Any] = {
        "norms": scan.norms.tolist(),
        "success": scan.success.tolist(),
        "converged": bool(scan.converged.all()),
        "image_forwards": scan.cost.forward,
        "image_gradients": scan.cost.backward,
        "queries": scan.cost.queries,
        "seconds": scan.cost.seconds,
    }
    if scan.weights is not None and target is not None:
        found["weights"] = scan.weights[target].tolist()
    verdicts = anomaly.verdicts(scan)
    for rule in anomaly.RULES:
        name, verdict = rule.replace("-", "_"), verdicts.get(rule)
        found[f"{name}_score"] = verdict.score if verdict else float("nan")
        found[f"{name}_flags"] = list(verdict.targets) if verdict else []
        found[f"{name}_case"] = metrics.case(verdict.targets, target) if verdict else None
    return found


@torch.no_grad()
def _norm(classifier: Classifier) -> float:
    """Mean Euclidean length of what the trigger changes in a test image."""
    x = classifier.dataset.test_images
    parts = classifier.attack.parts if classifier.attack else ()
    return float(torch.cat([(part.embed(x) - x).flatten(1).norm(dim=1) for part in parts]).mean())


def _cross_trigger(classifier: Classifier) -> float | None:
    if not isinstance(classifier.attack, InputAware):
        return None
    x, y = classifier.dataset.test
    return float(metrics.cta(classifier.predict(classifier.attack.cross_embed(x, x.roll(1, 0))), y))
