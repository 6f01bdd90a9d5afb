"""Grid files: YAML that names classifiers, detectors and attacks, read into tasks before anything runs."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import attacks, detectors, models, zoo


class GridError(ValueError):
    """A grid file that cannot be run; the message names the field, the value and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row to be: a classifier and a detector with n clean images per class."""

    spec: zoo.Spec
    group: str
    detector: str
    n: int
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Hash of everything in the task; names the row's file."""
        plain = [self.spec.describe(), self.group, self.detector, self.n, self.settings]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True, kw_only=True)
class AttackTask:
    """The attacks of the field guide on one kind of classifier: names (None: all), and seeds."""

    spec: zoo.Spec
    target: int
    seeds: tuple[int, ...]
    names: tuple[str, ...] | None = None


_CLASSIFIER = {"dataset", "network", "recipe", "groups", "seeds", "classes", "n_train"}
_DETECTOR = {"name", "n", "settings"}
_ATTACKS = {"dataset", "network", "recipe", "classes", "n_train", "target", "seeds", "names"}


def read_grid(path: str | Path) -> list[Task]:
    """The tasks of a YAML grid. Raises GridError for anything it does not understand, before anything runs.

    classifiers: a list of {dataset, network, recipe, groups, seeds, classes?, n_train?}; detectors: a list
    of {name, n, settings?}. `seeds` is a list, or a number N for 0 … N-1. Every classifier meets every
    detector.
    """
    grid = _read(path, {"classifiers", "detectors"})
    specs = [
        pair for block in grid["classifiers"] for pair in _specs(_known(block, _CLASSIFIER, "classifiers"))
    ]
    chosen = [_known(block, _DETECTOR, "detectors") for block in grid["detectors"]]
    tasks = []
    for (spec, group), block in itertools.product(specs, chosen):
        settings = block.get("settings", {})
        try:
            detectors.build(block["name"], **settings)
        except (KeyError, ValueError, TypeError) as e:
            raise GridError(f"detector {block}: {e}") from e
        n = block.get("n", 8)
        if not isinstance(n, int) or n < 1:
            raise GridError(
                f"n = {n!r} of detector {block['name']}: a whole number of images per class, 1 or more, is needed"
            )
        tasks.append(
            Task(
                spec=spec, group=group, detector=block["name"], n=n, settings=tuple(sorted(settings.items()))
            )
        )
    return tasks


def read_attacks(path: str | Path) -> list[AttackTask]:
    """The tasks of a YAML file with one field, attacks: a list of {dataset, network, recipe, classes?,
    n_train?, target?, seeds?, names?}. Raises GridError as `read_grid` does.
    """
    tasks = []
    for block in _read(path, {"attacks"})["attacks"]:
        block, seeds = _known(block, _ATTACKS, "attacks"), block.get("seeds", 1)
        [(spec, _)] = _specs({k: v for k, v in block.items() if k in _CLASSIFIER} | {"seeds": 1})
        tasks.append(
            AttackTask(
                spec=spec,
                target=block.get("target", 1),
                seeds=tuple(range(seeds) if isinstance(seeds, int) else seeds),
                names=tuple(block["names"]) if "names" in block else None,
            )
        )
    return tasks


def _read(path: str | Path, fields: set[str]) -> dict[str, Any]:
    import yaml

    try:
        grid = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as e:
        raise GridError(f"grid {path} cannot be read: {e}") from e
    if not isinstance(grid, dict) or set(grid) != fields:
        raise GridError(f"grid {path} needs exactly the fields {' and '.join(sorted(fields))}")
    return grid


def _known(block: Any, allowed: set[str], where: str) -> dict[str, Any]:
    if not isinstance(block, dict) or set(block) - allowed:
        raise GridError(f"{where} entry {block!r}: allowed fields are {', '.join(sorted(allowed))}")
    return block


def _specs(block: dict[str, Any]) -> Iterator[tuple[zoo.Spec, str]]:
    base = {"dataset": "digits", "network": "small", "recipe": "smoke"} | {
        k: v for k, v in block.items() if k in zoo.Spec.__annotations__
    }
    if base["network"] not in models.NETWORKS:
        raise GridError(f"network {base['network']!r}: allowed are {', '.join(models.NETWORKS)}")
    seeds = block.get("seeds", 1)
    if isinstance(seeds, int):
        seeds = range(seeds)
    for seed, group in itertools.product(seeds, block.get("groups", ["C-0"])):
        try:
            attack = attacks.group(group, base["dataset"], seed=seed)
            spec = zoo.Spec(**base, attack=attack, seed=seed)
            spec.how  # noqa: B018  an unknown recipe is an error of the grid
        except (ValueError, TypeError) as e:
            raise GridError(f"classifiers entry {block!r}: {e}") from e
        yield (replace(spec, classes=tuple(spec.classes)) if spec.classes is not None else spec), group
