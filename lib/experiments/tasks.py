"""One row to be: a classifier and a detector, or a classifier alone with what its attack does.

A task is plain settings. Its `key` is a hash of them, defaults included, and names its row; its `code` is the print
of the code that makes the row, and stands in it as a column, so that an edit makes a row old and not lost. `run`
trains (or fetches) the classifier and returns the row, flat and tidy, with where it comes from. Rows hold raw
findings and no verdict: rules judge them when a table is read (`tables.verdicts`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import attacks, data, fingerprint, metrics, models, zoo
from ..attacks import AttackError, InputAware
from ..attacks.base import Attack, SingleAttack
from ..classifier import Classifier, Spec, scanning_code, training_code
from ..detectors import Detector, Scan, named
from ..settings import check_names, plain, shown

LOOK = 8  # images per class for what a row says of a trigger, where the detector itself needs none


class Task(Protocol):
    """What a sweep can run."""

    @property
    def spec(self) -> Spec:
        """The classifier that it begins with."""

    @property
    def key(self) -> str:
        """Hash of every setting, defaults included; names the row."""

    @property
    def code(self) -> str:
        """Print of the code that makes the row: network, attack, training, detector; no rule, nothing of this room."""

    @property
    def stratum(self) -> str:
        """What rows are checked together: detector and data set, or attack and data set."""

    @property
    def columns(self) -> dict[str, Any]:
        """Settings that a table of few tasks shows beside the row."""

    def run(self, *, device: str = "cpu", zoo_folder: str | Path | None = None) -> dict[str, Any]:
        """The row."""

    def figures(self, row: dict[str, Any]) -> Any:
        """Of a row, the numbers that another run of this task must give again."""


@dataclass(frozen=True, kw_only=True)
class ScanTask:
    """A classifier, and a detector with n clean images per class."""

    spec: Spec
    group: str
    detector: str
    n: int
    settings: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def how(self) -> Detector:
        """The detector itself. Raises ValueError for a setting that cannot be written down, such as a function."""
        for name, value in self.settings:
            if callable(value):
                raise ValueError(
                    f"{name} = {value!r} of {self.detector}: a row needs a setting that has a name"
                )
        return named(self.detector, **dict(self.settings))

    @cached_property
    def key(self) -> str:
        return _key([self.spec.describe(), self.group, self.detector, self.n, plain(self.how)])

    @cached_property
    def code(self) -> str:
        return _key([training_code(self.spec), scanning_code(self.how), _reading_code()])

    @property
    def stratum(self) -> str:
        return f"{self.detector} on {self.spec.dataset}"

    @property
    def columns(self) -> dict[str, Any]:
        return {}

    def __str__(self) -> str:
        return f"{self.detector} on {self.spec.dataset} {self.group} seed {self.spec.seed}"

    def run(self, *, device: str = "cpu", zoo_folder: str | Path | None = None) -> dict[str, Any]:
        """Train (or fetch) the classifier, scan it, and write down what was found."""
        classifier = zoo.get(self.spec, zoo=zoo_folder, device=device)
        scan = classifier.scan(self.how, self.n)
        attack = self.spec.attack
        row = _of_classifier(self, classifier) | {
            "group": self.group,
            "attack": json.dumps(attacks.describe(attack)),
            "target": attack.parts[0].target if attack else None,
            "n_sources": len(attack.parts[0].source_classes(scan.n_classes)) if attack else 0,
            "detector": self.detector,
            "n": self.n,
            "settings": json.dumps(plain(self.how)),
            "cta": classifier.metrics["cta"],
            "asr": classifier.metrics.get("asr"),
            "collateral": classifier.metrics.get("collateral"),
        }
        images = classifier.clean(self.n or LOOK)
        return row | _findings(scan) | _of_triggers(classifier, scan, images) | fingerprint.provenance(device)

    def figures(self, row: dict[str, Any]) -> Any:
        return [float(x) for x in row["norms"]]


@dataclass(frozen=True, kw_only=True)
class AttackTask:
    """A classifier with an attack, beside a clean one of the same kind and seed.

    name: what to call the attack; where the spec has none, it is the one of that name in `attacks.gallery`.
    target: the attack's, where it comes from the gallery.
    varied: settings of the attack that `sweep.table_of` gives as columns.
    """

    spec: Spec
    name: str
    target: int = 1
    varied: tuple[str, ...] = ()

    @cached_property
    def attacked(self) -> Spec:
        """The classifier with the attack. Raises DataError where a gallery's attack needs images that are not here."""
        return replace(self.spec, attack=self.spec.attack or self._from_gallery())

    @cached_property
    def key(self) -> str:
        return _key([self.attacked.describe(), self.name])

    @cached_property
    def code(self) -> str:
        return _key(
            [training_code(self.attacked), training_code(self.spec), zoo.metrics_code(), _reading_code()]
        )

    @property
    def stratum(self) -> str:
        return f"{self.name} on {self.spec.dataset}"

    @property
    def columns(self) -> dict[str, Any]:
        return {name: getattr(self.attacked.attack, name) for name in self.varied}

    def __str__(self) -> str:
        return f"{self.name} on {self.spec.dataset} seed {self.spec.seed}"

    def run(self, *, device: str = "cpu", zoo_folder: str | Path | None = None) -> dict[str, Any]:
        """Train (or fetch) both; ASR, CTA, collateral, norm of the change, seconds.

        `cross_trigger` is, for input-aware attacks, the accuracy on images with another image's trigger.
        """
        attack = self.attacked.attack
        classifier = zoo.get(self.attacked, zoo=zoo_folder, device=device)
        clean = zoo.get(self.spec, attack=None, zoo=zoo_folder, device=device)
        found = classifier.metrics
        row = _of_classifier(self, classifier) | {
            "attack": self.name,
            "settings": json.dumps(attacks.describe(attack)),
            "asr": found["asr"],
            "cta": found["cta"],
            "clean_cta": clean.metrics["cta"],
            "collateral": found["collateral"],
            "cross_trigger": _cross_trigger(classifier),
            "norm": _norm(classifier),
            "seconds": classifier.record["provenance"]["seconds"],
        }
        return row | fingerprint.provenance(device)

    def figures(self, row: dict[str, Any]) -> Any:
        return [float(row[name]) for name in ("asr", "cta", "clean_cta", "norm")]

    def _from_gallery(self) -> Attack:
        shape, k = _kind(str(data.root_folder()), self.spec.dataset, self.spec.classes, self.spec.n_train)
        return attacks.gallery(shape, target=self.target, n_classes=k, seed=self.spec.seed)[self.name]


@lru_cache(maxsize=64)
def _kind(root: str, dataset: str, classes: tuple[int, ...] | None, n_train: int | None) -> tuple[Any, int]:
    """Shape and number of classes of an image set, which a table's tasks ask for a hundred times."""
    images = data.load(dataset, root=root, classes=classes, n_train=n_train)
    return images.shape, images.n_classes


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
        raise AttackError(f"no attack {shown(unknown[0])} in the gallery: allowed are {', '.join(known)}")
    specs = [replace(spec, attack=None, seed=seed) for seed in seeds]
    return [AttackTask(spec=one, name=name, target=target) for one in specs for name in chosen]


def varied(
    spec: Spec,
    attack: SingleAttack | Callable[[int], SingleAttack],
    *,
    seeds: Sequence[int] = (0,),
    **settings: Sequence[Any],
) -> list[AttackTask]:
    """One attack with its settings varied: `varied(spec, attack, amplitude=[4, 8], seeds=range(3))`.

    A task for every value and seed, and for every combination where more than one setting is given. Each seed draws
    anew what the attack leaves open, such as a place.
    attack: also a function from the seed to the attack, such as `attacks.group` for a phase that it sets by seed.
    Raises AttackError for a setting that the attack does not have.
    """
    made = {s: replace(attack, seed=s) if isinstance(attack, SingleAttack) else attack(s) for s in seeds}
    if made:
        kind = type(next(iter(made.values())))
        check_names(kind, settings, name=kind.__name__, error=AttackError)
    return [
        AttackTask(
            spec=replace(spec, attack=replace(one, **changes), seed=seed),
            name=type(one).__name__,
            varied=tuple(settings),
        )
        for changes in _combinations(settings)
        for seed, one in made.items()
    ]


def _combinations(settings: dict[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    if not settings:
        yield {}
        return
    name, *rest = settings
    for value in settings[name]:
        yield from ({name: value} | more for more in _combinations({key: settings[key] for key in rest}))


def _reading_code() -> str:
    """Print of the code that makes a kept classifier a model again."""
    return fingerprint.of_functions(zoo.load_model, models.foreign.fill)


def _key(plain: list[Any]) -> str:
    return fingerprint.digest(plain)[:20]


def _of_classifier(task: Task, classifier: Classifier) -> dict[str, Any]:
    """What names the row, the code that made it, and the classifier that it is of."""
    spec = classifier.spec
    assert spec is not None  # it comes from the zoo
    named = {"dataset": spec.dataset, "network": spec.network, "recipe": str(spec.recipe), "seed": spec.seed}
    of = {"classifier": classifier.name, "weights_sha256": classifier.record["sha256"]}
    of |= {"data_sha256": classifier.dataset.hash}
    return {"key": task.key, "code": task.code, **named, **of}


def _findings(scan: Scan) -> dict[str, Any]:
    """What a rule reads, what the search says of itself, and its cost. Matrices (K, K) are lists of rows."""
    found: dict[str, Any] = {
        "norms": scan.norms.tolist(),
        "norm_name": scan.norm_name,
        "success": scan.success.tolist(),
        "reached": scan.reached.tolist(),
        "converged": bool(scan.converged.all()),
        "image_forwards": scan.cost.forward,
        "image_gradients": scan.cost.backward,
        "queries": scan.cost.queries,
        "seconds": scan.cost.seconds,
    }
    for name in ("pair_norms", "pair_reached", "weights"):
        value = getattr(scan, name)
        found[name] = None if value is None else value.tolist()
    return found


@torch.no_grad()
def _of_triggers(classifier: Classifier, scan: Scan, images: Tensor) -> dict[str, Any]:
    """What the recovered triggers are and do, on clean images (K, n, C, H, W).

    shares: (K, K), row = target, column = class: the share of its images that the trigger sends to the target.
    mask_l1, trigger_l1: (K,) |m|_1 and |m u|_1 of mask and pattern; None where there is no mask.
    cosine: between what the attack and what the trigger recovered for its target change in an image of another
        class, the mean over those images; None for a clean classifier.
    """
    flat, k, n = images.flatten(0, 1), scan.n_classes, images.shape[1]
    sent = [(classifier.predict(scan.embed(flat, t)) == t).view(k, n).float().mean(1) for t in range(k)]
    found: dict[str, Any] = {"shares": torch.stack(sent).tolist(), "mask_l1": None, "trigger_l1": None}
    if scan.mask is not None:
        found["mask_l1"] = scan.mask.sum((1, 2)).tolist()
        found["trigger_l1"] = (scan.mask[:, None] * scan.pattern).abs().sum((1, 2, 3)).tolist()
    return found | {"cosine": _cosine(classifier.attack, scan, images)}


def _cosine(attack: Attack | None, scan: Scan, images: Tensor) -> float | None:
    if attack is None:
        return None
    true = attack.parts[0]
    x = images[[t for t in range(scan.n_classes) if t != true.target]].flatten(0, 1)
    theirs, ours = true.embed(x) - x, scan.embed(x, true.target) - x
    return float(torch.cosine_similarity(theirs.flatten(1), ours.flatten(1)).mean())


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
