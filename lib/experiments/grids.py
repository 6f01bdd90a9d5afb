"""Grid files: YAML that names classifiers, detectors and attacks, read into tasks before anything runs.

A grid of scans has two fields, lists of ClassifierEntry and of DetectorEntry, and every classifier meets every
detector. A grid of attacks has one, `attacks`, a list of AttackEntry and of GroupEntry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .. import attacks, models, train
from ..attacks.base import Attack
from ..attacks.groups import NO_ATTACK
from ..classifier import Spec
from ..detectors import Detector, named
from ..settings import Allowed, Interval, Settings, allowed, choice, from_values, number, shown
from ..yaml_files import read_mapping
from .tasks import AttackTask, ScanTask, Task, of_gallery, varied

MOST = 20_000  # rows of one grid
FROM_0 = Interval(0, low_open=False)


class GridError(ValueError):
    """A grid file that cannot be run; the message names the field, the value and what is allowed."""


def _several(least: int, words: str, each: Callable[[Any], bool]) -> Allowed:
    """So many different values, or more."""
    return Allowed(lambda v: len(v) >= least and len(set(v)) == len(v) and all(map(each, v)), words)


NAMES = _several(1, "a list of one or more different names", bool)
CLASSES = _several(2, "a list of two or more different whole numbers from 0", FROM_0.holds)
LISTED = _several(1, "a list of different ones from 0", FROM_0.holds)
SEEDS = Allowed(
    lambda v: 1 <= v <= MOST if isinstance(v, int) else LISTED.holds(v),
    f"a number of seeds from 1 to {MOST:,}, or {LISTED.words}",
)


@dataclass(frozen=True, kw_only=True)
class Entry(Settings):
    """What an entry of a grid says of classifiers: their data, network, recipe; `seeds` is a list, or N for 0 … N-1."""

    dataset: str = allowed("digits", Allowed(bool, "a name"))
    network: str = choice("small", tuple(models.NETWORKS))
    recipe: str = choice("smoke", tuple(train.RECIPES))
    classes: tuple[int, ...] = allowed(None, CLASSES)  # left out: all
    n_train: int = number(None, least=2)  # left out: all
    seeds: int | tuple[int, ...] = allowed(1, SEEDS)

    error: ClassVar[type[ValueError]] = GridError

    @property
    def each(self) -> Sequence[int]:
        """The seeds."""
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds

    @property
    def spec(self) -> Spec:
        """Such a classifier, clean, of seed 0."""
        names = ("dataset", "network", "recipe", "classes", "n_train")
        return Spec(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class ClassifierEntry(Entry):
    """Classifiers of some attack groups (see `attacks.group`), each trained with every seed."""

    groups: tuple[str, ...] = allowed((NO_ATTACK,), NAMES)

    def specs(self) -> Iterator[tuple[Spec, str]]:
        """Every classifier with its group."""
        for seed in self.each:
            for group in self.groups:
                attack = attacks.group(group, self.dataset, seed=seed)
                yield replace(self.spec, attack=attack, seed=seed), group


@dataclass(frozen=True, kw_only=True)
class DetectorEntry(Settings):
    """A detector or a preset with n clean images per class: 8 where it needs any and n is left out."""

    name: str  # in the register of detectors as it is when the grid is read
    n: int = number(None, least=1)
    settings: dict[str, Any] = field(default_factory=dict)

    error: ClassVar[type[ValueError]] = GridError

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "settings", from_values(type(named(self.name)), self.settings))
        if self.n is not None and not self.how.needs.images:
            raise GridError(f"n = {self.n}: {self.name} needs no clean images, leave n out")

    @property
    def how(self) -> Detector:
        """The detector."""
        return named(self.name, **self.settings)

    @property
    def images(self) -> int:
        """Clean images per class."""
        return (8 if self.n is None else self.n) if self.how.needs.images else 0


@dataclass(frozen=True, kw_only=True)
class AttackEntry(Entry):
    """Attacks of the gallery (names left out: all of it) towards one target."""

    names: tuple[str, ...] = allowed(None, NAMES)
    target: int = number(1, least=0)

    def tasks(self) -> list[AttackTask]:
        """One for every seed and name."""
        return of_gallery(self.spec, names=self.names, seeds=self.each, target=self.target)


@dataclass(frozen=True, kw_only=True)
class GroupEntry(Entry):
    """The attack of a group (see `attacks.group`), with settings of its own, and others in all combinations."""

    group: str
    settings: dict[str, Any] = field(default_factory=dict)
    vary: dict[str, Any] = field(default_factory=dict)  # names to lists of values

    def tasks(self) -> list[AttackTask]:
        """One for every seed and combination of values."""
        if (attack := self.attack(0)) is None:
            raise GridError(f"group = {self.group!r}: a group with an attack is needed")
        kind, vary, rows = type(attack), {}, len(self.each)
        for name, values in self.vary.items():
            if not isinstance(values, list) or not values:
                raise GridError(f"vary: {name} = {shown(values)}: a list of one or more values is needed")
            if name in self.settings:
                raise GridError(f"vary: {name} stands in settings, too")
            if (rows := rows * len(values)) > MOST:
                raise GridError(f"vary: {rows:,} rows: at most {MOST:,} are allowed")
            vary[name] = [from_values(kind, {name: value}, whole=False)[name] for value in values]
        return varied(self.spec, self.attack, seeds=self.each, **vary)

    def attack(self, seed: int) -> Any:
        """The group's attack of this seed."""
        found = attacks.group(self.group, self.dataset, seed=seed)
        return replace(found, **from_values(type(found), self.settings, whole=False)) if found else None


def read_grid(path: str | Path) -> list[Task]:
    """The tasks of a YAML grid, of either kind.

    Raises GridError, naming the file, the entry, the field, the value and what is allowed, for anything that it does
    not understand. Image sets are not looked at: that is `check_images`.
    """
    grid = read_mapping(path, error=GridError)
    with _at(path):
        if set(grid) == {"attacks"}:
            return _attack_tasks(grid)
        if set(grid) == {"classifiers", "detectors"}:
            return _scan_tasks(grid)
        raise GridError(
            f"fields {shown(list(grid))}: classifiers and detectors, or attacks alone, are needed"
        )


def _scan_tasks(grid: dict[str, Any]) -> list[Task]:
    made: dict[str, tuple[Spec, str]] = {}
    for place, classifiers in _entries(grid, "classifiers", ClassifierEntry):
        with _at(place):
            for spec, group in classifiers.specs():
                _add(made, (spec, group), repr((spec, group)), f"{group} with seed {spec.seed}")
    chosen: dict[str, DetectorEntry] = {}
    for place, detector in _entries(grid, "detectors", DetectorEntry):
        with _at(place):
            key = repr((detector.name, detector.images, detector.how))
            _add(chosen, detector, key, f"{detector.name} with this n and these settings")
    if len(made) * len(chosen) > MOST:
        raise GridError(
            f"{len(made):,} classifiers x {len(chosen):,} detectors: at most {MOST:,} rows are allowed"
        )
    return [
        ScanTask(
            spec=spec,
            group=group,
            detector=detector.name,
            n=detector.images,
            settings=tuple(sorted(detector.settings.items())),
        )
        for spec, group in made.values()
        for detector in chosen.values()
    ]


def _attack_tasks(grid: dict[str, Any]) -> list[Task]:
    tasks: dict[str, Task] = {}
    entries: Iterator[tuple[str, AttackEntry | GroupEntry]]
    entries = _entries(grid, "attacks", AttackEntry, GroupEntry)
    for place, block in entries:
        with _at(place):
            for task in block.tasks():
                one = replace(task, varied=())  # two entries may come to the same row by different ways
                _add(tasks, one, repr(one), f"{task.name} with seed {task.spec.seed}")
    return list(tasks.values())


T = TypeVar("T")


def _entries(grid: dict[str, Any], name: str, *kinds: type[Any]) -> Iterator[tuple[str, Any]]:
    """Where each entry of a list stands, and what it says; of the last kind where it names a group."""
    listed = grid[name]
    if not isinstance(listed, list) or not listed:
        raise GridError(f"{name} = {shown(listed)}: a list of one or more entries is needed")
    for i, given in enumerate(listed, 1):
        place = f"entry {i} of {name}"
        if not isinstance(given, dict):
            raise GridError(f"{place} = {shown(given)}: a mapping of fields is needed")
        kind = kinds[-1] if "group" in given else kinds[0]
        with _at(place):
            entry = kind(**from_values(kind, given, word="field"))
        yield place, entry


def _add(known: dict[str, T], one: T, key: str, words: str) -> None:
    if key in known:
        raise GridError(f"{words} stands in the grid before, too")
    if len(known) == MOST:
        raise GridError(f"more than {MOST:,} rows")
    known[key] = one


@contextmanager
def _at(place: object) -> Iterator[None]:
    """What is refused inside is refused as standing there."""
    try:
        yield
    except ValueError as error:
        raise GridError(f"{place}: {error}") from None


def check_images(tasks: Iterable[Task]) -> None:
    """Raise GridError for the first task that this machine's image sets cannot serve, as far as can be seen at once.

    Such as a set that is missing, a class or an attack's target that it does not have, too few images of a class.
    """
    sets: dict[str, tuple[int, Tensor, Tensor, Tensor]] = {}
    for task in tasks:
        with _at(str(task)[:120]):
            key = repr(replace(task.spec, attack=None, seed=0))
            if key not in sets:
                found = task.spec.load_data()
                sets[key] = (
                    found.n_classes,
                    found.test_images[:1].clone(),
                    found.train_labels,
                    found.test_labels,
                )
            k, image, train_labels, test_labels = sets[key]
            attack = task.attacked.attack if isinstance(task, AttackTask) else task.spec.attack
            for part in attack.parts if attack else ():
                part.source_classes(k)
                if type(part).train is Attack.train:  # it poisons, and does nothing else
                    part.choose(train_labels, torch.Generator())
                    part.embed(image)
            least = int(torch.bincount(test_labels, minlength=k).min())
            if isinstance(task, ScanTask) and task.n > least:
                raise GridError(f"n = {task.n}: the smallest class has {least} test images")
