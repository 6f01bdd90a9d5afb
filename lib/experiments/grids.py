"""Grid files: YAML that names classifiers, detectors and attacks, read into tasks before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import attacks, models
from ..classifier import Spec
from ..detectors import named
from .tasks import ScanTask, Task, of_gallery


class GridError(ValueError):
    """A grid file that cannot be run; the message names the field, the value and what is allowed."""


_CLASSIFIER = {"dataset", "network", "recipe", "groups", "seeds", "classes", "n_train"}
_DETECTOR = {"name", "n", "settings"}
_ATTACKS = {"dataset", "network", "recipe", "classes", "n_train", "target", "seeds", "names"}


def read_grid(path: str | Path) -> list[Task]:
    """The tasks of a YAML grid, of either kind.

    A grid of scans has two fields. classifiers: a list of {dataset, network, recipe, groups, seeds, classes?,
    n_train?}; detectors: a list of {name, n, settings?}; every classifier meets every detector. A grid of attacks
    has one. attacks: a list of {dataset, network, recipe, classes?, n_train?, target?, seeds?, names?}. `seeds` is
    a list, or a number N for 0 … N-1.
    Raises GridError for anything that it does not understand, before anything runs.
    """
    grid = _read(path)
    return list(_attack_tasks(grid) if "attacks" in grid else _scan_tasks(grid))


def _scan_tasks(grid: dict[str, Any]) -> Iterator[Task]:
    blocks = [_known(block, _CLASSIFIER, "classifiers") for block in grid["classifiers"]]
    specs = [pair for block in blocks for pair in _specs(block)]
    chosen = [_known(block, _DETECTOR, "detectors") for block in grid["detectors"]]
    for (spec, group), block in itertools.product(specs, chosen):
        settings = block.get("settings", {})
        try:
            needed = named(block["name"], **settings).needs.images
        except (KeyError, ValueError, TypeError) as e:
            raise GridError(f"detector {block}: {e}") from e
        n = block.get("n", 8 if needed else 0)
        if n and not needed:
            raise GridError(f"n = {n!r} of detector {block['name']}: it needs no clean images, leave n out")
        if needed and (not isinstance(n, int) or n < 1):
            whole = "a whole number of images per class, 1 or more, is needed"
            raise GridError(f"n = {n!r} of detector {block['name']}: {whole}")
        as_pairs = tuple(sorted(settings.items()))
        yield ScanTask(spec=spec, group=group, detector=block["name"], n=n, settings=as_pairs)


def _attack_tasks(grid: dict[str, Any]) -> Iterator[Task]:
    for block in grid["attacks"]:
        block, seeds = _known(block, _ATTACKS, "attacks"), block.get("seeds", 1)
        [(spec, _)] = _specs({k: v for k, v in block.items() if k in _CLASSIFIER} | {"seeds": 1})
        try:
            which = {"names": block.get("names"), "target": block.get("target", 1)}
            yield from of_gallery(spec, seeds=range(seeds) if isinstance(seeds, int) else seeds, **which)
        except ValueError as e:
            raise GridError(f"attacks entry {block}: {e}") from e


def _read(path: str | Path) -> dict[str, Any]:
    import yaml

    try:
        grid = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as e:
        raise GridError(f"grid {path} cannot be read: {e}") from e
    if not isinstance(grid, dict) or set(grid) not in ({"classifiers", "detectors"}, {"attacks"}):
        raise GridError(f"grid {path} needs exactly the fields classifiers and detectors, or attacks alone")
    return grid


def _known(block: Any, allowed: set[str], where: str) -> dict[str, Any]:
    if not isinstance(block, dict) or set(block) - allowed:
        raise GridError(f"{where} entry {block!r}: allowed fields are {', '.join(sorted(allowed))}")
    return block


def _specs(block: dict[str, Any]) -> Iterator[tuple[Spec, str]]:
    base = {"dataset": "digits", "network": "small", "recipe": "smoke"} | {
        k: v for k, v in block.items() if k in Spec.__annotations__
    }
    if base["network"] not in models.NETWORKS:
        raise GridError(f"network {base['network']!r}: allowed are {', '.join(models.NETWORKS)}")
    seeds = block.get("seeds", 1)
    if isinstance(seeds, int):
        seeds = range(seeds)
    for seed, group in itertools.product(seeds, block.get("groups", ["C-0"])):
        try:
            attack = attacks.group(group, base["dataset"], seed=seed)
            spec = Spec(**base, attack=attack, seed=seed)
            spec.describe()  # an unknown recipe is an error of the grid
        except (ValueError, TypeError) as e:
            raise GridError(f"classifiers entry {block!r}: {e}") from e
        yield (replace(spec, classes=tuple(spec.classes)) if spec.classes is not None else spec), group
