"""Train once, keep for ever: classifiers addressed by the hash of everything that made them.

An entry is a folder `<zoo>/<key>/` with model.safetensors, entry.json, and attack.safetensors where the
attack learnt something. It appears by one rename, so a killed run leaves nothing half-written; two
processes that ask for the same classifier train it once (a lock file per key); an entry whose bytes do not
match its recorded hash is reported, put aside, and trained again. No pickle is ever read.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import inspect
import json
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import attacks, data, metrics, models, train

LEARNT = "attack.safetensors"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything that makes a classifier what it is."""

    dataset: str = "digits"
    network: str = "small"
    recipe: train.Recipe | str = "smoke"
    attack: attacks.Attack | None = None
    seed: int = 0
    classes: tuple[int, ...] | None = None
    n_train: int | None = None

    def load_data(self, *, root: str | Path | None = None) -> data.Dataset:
        """The image set of this classifier."""
        return data.load(self.dataset, root=root, classes=self.classes, n_train=self.n_train)

    @property
    def how(self) -> train.Recipe:
        return train.recipe(self.recipe) if isinstance(self.recipe, str) else self.recipe

    def describe(self) -> dict[str, Any]:
        """JSON-ready values."""
        plain = {k: getattr(self, k) for k in ("dataset", "network", "seed", "classes", "n_train")}
        return plain | {"recipe": asdict(self.how), "attack": attacks.describe(self.attack)}


@dataclass(frozen=True)
class Classifier:
    """A trained classifier: the model (evaluation mode), its metrics on the test set, where it lies,
    its data, and its attack.

    `attack` is spec.attack with whatever it learnt in training (a generator, an optimised trigger), so its
    embed works.
    """

    model: nn.Sequential
    spec: Spec
    entry: dict[str, Any]
    path: Path
    dataset: data.Dataset = field(repr=False)
    attack: attacks.Attack | None = None

    @property
    def metrics(self) -> dict[str, Any]:
        return self.entry["metrics"]

    def __str__(self) -> str:
        rates = [(n.upper(), self.metrics.get(n)) for n in ("asr", "cta")]
        return ", ".join(f"{name} {rate:.3f}" for name, rate in rates if rate is not None)


def folder(zoo: str | Path | None = None) -> Path:
    """Where entries lie: the argument, else REDBOOK_ZOO, else zoo/ under the data root."""
    return Path(zoo or os.environ.get("REDBOOK_ZOO") or data.root_folder() / "zoo")


def key(spec: Spec, dataset: data.Dataset) -> str:
    """Hash of the settings, the data's content,
    and the code that trains (comments and docstrings left out).
    """
    modules = {models, train, attacks.base}
    for attack in (spec.attack, *spec.attack.parts) if spec.attack is not None else ():
        modules |= {
            sys.modules[c.__module__]
            for c in type(attack).__mro__
            if c.__module__.startswith(__package__ or "lib")
        }
    code = {m.__name__: _fingerprint(inspect.getsource(m)) for m in modules}
    payload = json.dumps([spec.describe(), dataset.hash, code], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:20]


def _fingerprint(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = None
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def get(
    spec: Spec, *, zoo: str | Path | None = None, device: str | torch.device = "cpu", progress: bool = False
) -> Classifier:
    """The classifier of `spec`: from the zoo if it is there, else trained and kept.
    The model is returned on `device`.
    """
    dataset = spec.load_data()
    home = folder(zoo)
    path = home / key(spec, dataset)
    with alone(home / "locks" / path.name):
        loaded = _read(path, spec, dataset)
        if loaded is None:
            with train.few_threads(dataset.train_images, spec.how.batch_size):
                loaded = _train(spec, dataset, path, device, progress)
        attack = spec.attack and spec.attack.with_learnt(_learnt(path) if spec.attack.learns else {})
    model, entry = loaded
    return Classifier(model.to(device), spec, entry, path, data.to(dataset, device), attack)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock file `path`: one process at a time is inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path, spec: Spec, dataset: data.Dataset) -> tuple[nn.Sequential, dict[str, Any]] | None:
    """Model and entry, or None when there is nothing usable; a damaged entry is named and put aside."""
    if not path.exists():
        return None
    try:
        return load_entry(path, dataset)
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
        warnings.warn(
            f"zoo entry {path} is damaged ({e}); it is put aside as {aside.name} and trained again",
            stacklevel=3,
        )
        os.replace(path, aside)
        return None


def load_entry(path: Path, dataset: data.Dataset | None = None) -> tuple[nn.Sequential, dict[str, Any]]:
    """Model (CPU, evaluation mode) and entry of a zoo folder.
    Raises ValueError when the files do not match each other.
    """
    entry = json.loads((path / "entry.json").read_text())
    weights = path / "model.safetensors"
    recorded = {weights: entry["sha256"]} | (
        {path / LEARNT: entry["attack_sha256"]} if "attack_sha256" in entry else {}
    )
    for file, digest in recorded.items():
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != digest:
            raise ValueError(f"{file} has hash {found[:12]}…, recorded is {digest[:12]}…")
    model = models.build(entry["spec"]["network"], n_classes=entry["n_classes"], shape=tuple(entry["shape"]))
    model.load_state_dict(load_file(weights))
    return model.eval(), entry


def _learnt(path: Path) -> dict[str, Tensor]:
    """What the attack learnt: copies, because load_file's tensors read the file as long as they live."""
    return {k: v.clone() for k, v in load_file(path / LEARNT).items()}


def _train(
    spec: Spec, dataset: data.Dataset, path: Path, device: str | torch.device, progress: bool
) -> tuple[nn.Sequential, dict[str, Any]]:
    started = time.perf_counter()
    local = data.to(dataset, device)
    images, labels = local.train_images, local.train_labels
    mean, std = (images.mean((0, 2, 3)).tolist(), images.std((0, 2, 3)).clamp_min(1e-3).tolist())

    def build() -> nn.Sequential:
        fresh = models.build(
            spec.network, n_classes=dataset.n_classes, shape=dataset.shape, seed=spec.seed, mean=mean, std=std
        )
        return fresh.to(device)

    def fit(model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
        return train.fit(model, images, labels, spec.how, seed=spec.seed, progress=progress)

    learnt: dict[str, Tensor] = {}
    if spec.attack is None:
        model = build()
        fit(model, images, labels)
    else:
        job = attacks.Job(
            images=images, labels=labels, build=build, fit=fit, seed=spec.seed, progress=progress,
            epochs=spec.how.epochs, batch_size=spec.how.batch_size,
        )  # fmt: skip
        model, learnt = spec.attack.train(job)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    seconds = time.perf_counter() - started
    entry = {
        "spec": spec.describe(),
        "data_hash": dataset.hash,
        "shape": list(dataset.shape),
        "n_classes": dataset.n_classes,
        "classes": list(dataset.classes),
        "metrics": evaluate(model, local, spec.attack and spec.attack.with_learnt(learnt)),
        "provenance": {
            "seconds": seconds,
            "device": str(device),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    return _write(path, model.cpu(), learnt, entry), entry


def _write(
    path: Path, model: nn.Sequential, learnt: dict[str, Tensor], entry: dict[str, Any]
) -> nn.Sequential:
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    entry["sha256"] = _save(model.state_dict(), partial / "model.safetensors")
    if learnt:
        entry["attack_sha256"] = _save(learnt, partial / LEARNT)
    (partial / "entry.json").write_text(json.dumps(entry, indent=1))
    os.replace(partial, path)
    return model.eval()


def _save(tensors: dict[str, Tensor], file: Path) -> str:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, file)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def evaluate(model: nn.Module, dataset: data.Dataset, attack: attacks.Attack | None) -> dict[str, Any]:
    """CTA, and for an attacked classifier ASR on the sources and the share of other classes sent to the
    target.

    A composition is as strong as its weakest part: `asr` is the smallest, `collateral` the largest over its
    parts; `asr_parts` has each.
    """
    labels = dataset.test_labels
    found: dict[str, Any] = {"cta": float(metrics.cta(models.predict(model, dataset.test_images), labels))}
    successes, others = [], []
    for part in attack.parts if attack is not None else ():
        stamped = models.predict(model, part.embed(dataset.test_images))
        sources = part.source_classes(dataset.n_classes)
        successes.append(float(metrics.asr(stamped, labels, part.target, sources)))
        other = metrics.non_source_rate(stamped, labels, part.target, sources)
        others += [float(other)] if other.total else []
    if successes:
        found |= {"asr": min(successes), "collateral": max(others, default=None)}
    if len(successes) > 1:
        found["asr_parts"] = successes
    return found
