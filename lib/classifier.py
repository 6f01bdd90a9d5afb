"""A classifier: a model, the images that it is for, its attack if that is known; and how one is made.

    c = zoo.get(zoo.Spec(attack=attacks.group("G-3", "digits")))
    scan = c.scan(detectors.LRED(), n=8)

`Spec` says everything that makes a classifier what it is, `trained` makes it, `Classifier` is what comes out, or
what somebody hands in.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import attacks, data, fingerprint, metrics, models, train
from .attacks.base import Attack
from .data import Dataset, Labelled
from .detectors.base import Detector
from .detectors.scan import Scan
from .settings import Settings, choice, number


@dataclass(frozen=True, kw_only=True)
class Spec(Settings):
    """Everything that makes a classifier what it is.

    classes: keep these alone, renumbered; n_train: keep so many training images (see `data.load`).
    """

    dataset: str = "digits"
    network: str = choice("small", tuple(models.NETWORKS))
    recipe: train.Recipe | str = "smoke"
    attack: Attack | None = None
    seed: int = number(0, least=0)
    classes: tuple[int, ...] | None = None
    n_train: int | None = number(None, least=2)

    def load_data(self, *, root: str | Path | None = None) -> Dataset:
        """The image set of this classifier."""
        return data.load(self.dataset, root=root, classes=self.classes, n_train=self.n_train)

    @property
    def how(self) -> train.Recipe:
        """The recipe itself. Raises ValueError for an unknown name."""
        return train.recipe(self.recipe) if isinstance(self.recipe, str) else self.recipe

    def describe(self) -> dict[str, Any]:
        """JSON-ready values."""
        plain = {k: getattr(self, k) for k in ("dataset", "network", "seed", "classes", "n_train")}
        return plain | {"recipe": asdict(self.how), "attack": attacks.describe(self.attack)}


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A model, its images, and whatever is known of it.

    name: what to call it: the zoo's name, a file's.
    model: images (N, C, H, W) in [0, 1] -> logits (N, K), in evaluation mode.
    dataset: the image set that it is for.
    attack: what was done to it, with whatever that learnt in training, so that its embed works; None for a clean
        classifier, and where nobody knows.
    spec: how it was made; None where nobody knows.
    record: what was written down when it was made: metrics on the test set, provenance.
    facts: what to print beside a result.
    path: where it lies.
    """

    name: str
    model: nn.Module
    dataset: Dataset = field(repr=False)
    attack: Attack | None = None
    spec: Spec | None = None
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    facts: Mapping[str, object] = field(default_factory=dict)
    path: Path | None = None

    @property
    def n_classes(self) -> int:
        """K."""
        return self.dataset.n_classes

    @property
    def seed(self) -> int:
        """Of its training; 0 where that is not known."""
        return self.spec.seed if self.spec else 0

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What was recorded when it was made, else what `evaluate` finds."""
        return self.record["metrics"] if "metrics" in self.record else self.evaluate()

    def predict(self, images: Tensor) -> Tensor:
        """Labels (N,) of images (N, C, H, W)."""
        return models.predict(self.model, images)

    def clean(self, n: int, *, seed: int | None = None, among: Labelled | None = None) -> Tensor:
        """n correctly classified images of every class, (K, n, C, H, W): what a defender holds.

        seed: draws them; default that of the training.
        among: images and labels to draw from; default the test images.
        Raises DataError when a class has fewer.
        """
        images, labels = among or self.dataset.test
        generator = torch.Generator().manual_seed(self.seed if seed is None else seed)
        k = self.n_classes
        return data.clean_per_class(self.predict, images, labels, n, n_classes=k, generator=generator)

    def scan(self, detector: Detector, n: int = 8, *, seed: int | None = None, **options: Any) -> Scan:
        """Scan it with n of its `clean` images per class; none for a detector that needs none.

        seed: draws the images and whatever the detector draws; default that of the training.
        options: of `Detector.scan`, such as progress.
        """
        seed = self.seed if seed is None else seed
        images = self.dataset.test.images
        nothing = images.new_empty(self.n_classes, 0, *images.shape[1:])
        clean = self.clean(n, seed=seed) if detector.needs.images else nothing
        generator = torch.Generator(clean.device).manual_seed(seed)
        return detector.scan(self.model, clean, generator=generator, **options)

    def evaluate(self) -> dict[str, Any]:
        """CTA, and where the attack is known ASR on its sources and the share of other classes that follow.

        An attack of several parts is as strong as its weakest: `asr` is the smallest, `collateral` the largest over
        the parts; `asr_parts` has each.
        """
        images, labels = self.dataset.test
        found: dict[str, Any] = {"cta": float(metrics.cta(self.predict(images), labels))}
        successes, others = [], []
        for part in self.attack.parts if self.attack is not None else ():
            stamped = self.predict(part.embed(images))
            sources = part.source_classes(self.n_classes)
            successes.append(float(metrics.asr(stamped, labels, part.target, sources)))
            other = metrics.non_source_rate(stamped, labels, part.target, sources)
            others += [float(other)] if other.total else []
        if successes:
            found |= {"asr": min(successes), "collateral": max(others, default=None)}
        if len(successes) > 1:
            found["asr_parts"] = successes
        return found

    def with_model(self, model: nn.Module) -> Classifier:
        """The same with another model, such as a repaired one; what was recorded of the old one is left behind."""
        return replace(self, model=model, record={}, path=None)

    def to(self, device: str | torch.device) -> Classifier:
        """The same with its model and its images on `device`."""
        return replace(self, model=self.model.to(device), dataset=self.dataset.to(device))

    def __str__(self) -> str:
        rates = [(n.upper(), self.metrics.get(n)) for n in ("asr", "cta")]
        return ", ".join(f"{name} {rate:.3f}" for name, rate in rates if rate is not None)


def trained(
    spec: Spec,
    dataset: Dataset,
    *,
    device: str | torch.device = "cpu",
    name: str = "",
    progress: bool = False,
) -> Classifier:
    """The classifier that `spec` describes, trained on `device`, with its metrics on record; it lies on the CPU.

    dataset: that of `spec.load_data()`.
    """
    with train.few_threads(dataset.train_images, spec.how.batch_size):
        return _trained(spec, dataset, device, name, progress)


def _trained(
    spec: Spec, dataset: Dataset, device: str | torch.device, name: str, progress: bool
) -> Classifier:
    started = time.perf_counter()
    local = dataset.to(device)
    images, labels = local.train
    mean, std = _levels(images)

    def build() -> nn.Sequential:
        kind: dict[str, Any] = {"n_classes": dataset.n_classes, "shape": dataset.shape}
        return models.network(spec.network, **kind, seed=spec.seed, mean=mean, std=std).to(device)

    def fit(model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
        return train.fit(model, images, labels, spec.how, seed=spec.seed, progress=progress)

    learnt: dict[str, Tensor] = {}
    if spec.attack is None:
        model = build()
        fit(model, images, labels)
    else:
        recipe = {"epochs": spec.how.epochs, "batch_size": spec.how.batch_size}
        job = attacks.Job(
            images=images, labels=labels, build=build, fit=fit, seed=spec.seed, progress=progress, **recipe
        )
        model, learnt = spec.attack.train(job)
    seconds = time.perf_counter() - started
    attack = spec.attack and spec.attack.with_learnt(learnt)
    made = Classifier(name=name, model=model.eval(), dataset=local, attack=attack, spec=spec)
    record = {
        "spec": spec.describe(),
        "data_hash": dataset.hash,
        "shape": list(dataset.shape),
        "n_classes": dataset.n_classes,
        "classes": list(dataset.classes),
        "metrics": made.evaluate(),
        "provenance": {
            "seconds": seconds,
            "device": str(device),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    return replace(made, model=model.cpu().eval(), dataset=dataset, record=record, facts=facts(record))


def _levels(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and spread of each channel, added up in double precision: rounded, they are the same everywhere."""
    exact = images.transpose(0, 1).flatten(1).double()
    return exact.mean(1).tolist(), exact.std(1).clamp_min(1e-3).tolist()


def training_code(spec: Spec) -> str:
    """Print of the code that a classifier's weights depend on: network, attack, training."""
    kinds = [type(attack) for attack in (spec.attack, *spec.attack.parts)] if spec.attack is not None else []
    files = {Path(train.__file__), Path(models.networks.__file__), *fingerprint.files_of(kinds)}
    here = fingerprint.of_functions(trained, _trained)
    return fingerprint.digest([fingerprint.of_closure(frozenset(files)), here])


def scanning_code(detector: Detector) -> str:
    """Print of the code that a scan depends on besides the classifier: the detector, and how its images are drawn."""
    files = frozenset(
        fingerprint.files_of([type(detector)]) | {Path(data.__file__), Path(models.ask.__file__)}
    )
    seed = vars(Classifier)["seed"].fget  # of the property
    drawing = fingerprint.of_functions(Classifier.clean, Classifier.scan, Classifier.predict, seed)
    return fingerprint.digest([fingerprint.of_closure(files), drawing])


def facts(record: Mapping[str, Any]) -> dict[str, object]:
    """What a record says of its classifier, to print beside a result."""
    spec, accuracy = record["spec"], f"{record['metrics']['cta']:.4f}"
    return {"network": spec["network"], "data": spec["dataset"], "clean accuracy": accuracy}
