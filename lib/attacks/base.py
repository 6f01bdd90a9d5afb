"""What attacks share: which images are stamped, how labelled, what becomes of the originals.

An attack is a frozen dataclass of plain values, so it can be written to JSON and hashed. Every attack
consists of one or more `parts`, each a SingleAttack with one trigger: `embed` puts that trigger on images,
`poison` makes a training set.

    >>> attack = BadNets(target=1, rate=0.1)
    >>> poisoned = attack.poison(images, labels, torch.Generator().manual_seed(0))

The plan is Sec. A.4 of L-RED (Xiang, Miller and Kesidis 2021): stamp some images of each source class,
label them `target`, drop the originals; and, so that other classes stay clean, stamp `cover` images of
every class that is neither source nor target and keep their true labels.

`train` is the one hook of attacks that need more than the data: it takes a Job (what the trainer holds) and
returns the model together with whatever tensors the attack has learnt, which `with_learnt` puts back into
an attack whose `embed` then works.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..settings import Interval, Settings, number

Place = tuple[int, int]
Shape = tuple[int, int, int]
Learnt = Mapping[str, Tensor]


class AttackError(ValueError):
    """A setting that cannot be: the message says which, its value, and what is allowed."""


@dataclass(frozen=True)
class PoisonedSet:
    """A training set after poisoning.

    images, labels: (N, C, H, W) and (N,), as the trainer sees them.
    poisoned: (N,) mask of the stamped images labelled `target`.
    cover: (N,) mask of the stamped images with their true label.
    source: (N,) index of each image in the clean set.
    removed: indices of the clean images that are gone.
    """

    images: Tensor
    labels: Tensor
    poisoned: Tensor
    cover: Tensor
    source: Tensor
    removed: Tensor


@dataclass(frozen=True)
class Needs:
    """What the attacker must hold or control."""

    data: str = "some training images"
    labels: bool = True
    model: str = "nothing"
    training: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the trainer of a classifier holds, and hands to the attack.

    images, labels: the clean training set, (N, C, H, W) and (N,), on the training device.
    build: makes a fresh network, the same at every call.
    fit: trains a model in place by the recipe and returns it in evaluation mode.
    epochs, batch_size: the recipe's, for loops of an attack's own.
    seed: everything random follows from it.
    """

    images: Tensor
    labels: Tensor
    build: Callable[[], nn.Sequential]
    fit: Callable[[nn.Module, Tensor, Tensor], nn.Module]
    epochs: int
    batch_size: int
    seed: int
    progress: bool = False
    generator: torch.Generator = field(init=False, compare=False)  # draws which images are stamped

    def __post_init__(self) -> None:
        object.__setattr__(self, "generator", torch.Generator().manual_seed(self.seed))

    @property
    def n_classes(self) -> int:
        """Classes of the task."""
        return int(self.labels.max()) + 1

    def trained(self, images: Tensor, labels: Tensor) -> nn.Sequential:
        """A fresh network, trained on these images (N, C, H, W) and labels (N,)."""
        model = self.build()
        self.fit(model, images, labels)
        return model

    def clean_model(self) -> nn.Sequential:
        """A classifier trained on the clean set, as an attacker who needs one would train it."""
        return self.trained(self.images, self.labels)


def is_whole(value: object, *, least: float = float("-inf"), most: float = float("inf")) -> bool:
    """Is it a whole number within the bounds?"""
    return Interval(least, most, low_open=False, high_open=False).holds(value) and value % 1 == 0  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class Attack(Settings, ABC):
    """What can be done with any attack, be it one trigger or several.

    Raises AttackError on impossible settings.
    """

    seed: int = number(0)  # draws what the trigger leaves open (place, channel, colours)

    error: ClassVar[type[ValueError]] = AttackError
    needs: ClassVar[Needs] = Needs()
    learns: ClassVar[bool] = False  # does `embed` wait for tensors that only training makes?
    learnt: ClassVar[Learnt] = {}  # those tensors, once `with_learnt` has put them on an instance

    @property
    @abstractmethod
    def parts(self) -> tuple[SingleAttack, ...]:
        """The attacks of one trigger each that this one consists of."""

    @abstractmethod
    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> PoisonedSet:
        """A clean training set, images (N, C, H, W) and labels (N,), poisoned.

        generator: draws which images are stamped.
        The images given stay as they are. Raises AttackError where there are too few of them.
        """

    def train(self, job: Job) -> tuple[nn.Sequential, dict[str, Tensor]]:
        """The attacked classifier, trained, and what the attack has learnt (nothing, by default)."""
        poisoned = self.poison(job.images, job.labels, job.generator)
        return job.trained(poisoned.images, poisoned.labels), {}

    def with_learnt(self, tensors: Learnt) -> Self:
        """This attack with the tensors that `train` returned, so that `embed` works."""
        if not self.learns:
            return self
        ready = replace(self)
        object.__setattr__(ready, "learnt", dict(tensors))
        return ready

    def require_learnt(self) -> Learnt:
        """The learnt tensors; raises AttackError before training."""
        if not self.learnt:
            name = type(self).__name__
            raise AttackError(
                f"the trigger of {name} is learnt in training: use the attack of a trained classifier"
            )
        return self.learnt


@dataclass(frozen=True, kw_only=True)
class SingleAttack(Attack):
    """One trigger and the images that get it; subclasses add the trigger.

    Exactly one of per_source and rate says how many images are stamped.
    """

    target: int = number(least=0)
    sources: tuple[int, ...] | None = None  # None: every class but the target
    per_source: int | None = number(None, least=1)  # stamped images per source class
    # stamped share of the whole training set, drawn from the sources in proportion
    rate: float | None = number(None, above=0, below=1)
    cover: int = number(0, least=0)  # stamped images with true labels, per class neither source nor target
    remove_originals: bool = True  # the attacker owns the originals; the trainer never sees them

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sources is not None:
            if self.target in self.sources:
                raise AttackError(
                    f"target {self.target} is among the sources {self.sources}: sources must be other classes"
                )
            if not self.sources or len(set(self.sources)) != len(self.sources):
                raise AttackError(f"sources = {self.sources}: one or more different classes are needed")
            # a set: in another order it is the same attack, with the same draws and the same name in the zoo
            object.__setattr__(self, "sources", tuple(sorted(self.sources)))
        if (self.per_source is None) == (self.rate is None):
            raise AttackError(f"per_source = {self.per_source}, rate = {self.rate}: give exactly one")

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] with the trigger on, same shape and range."""

    @property
    def parts(self) -> tuple[SingleAttack, ...]:
        """This attack alone."""
        return (self,)

    def source_classes(self, n_classes: int) -> tuple[int, ...]:
        """The source classes, spelled out for a task of n_classes.

        Raises AttackError for classes that the task does not have.
        """
        for k in (self.target, *(self.sources or ())):
            if not 0 <= k < n_classes:
                raise AttackError(f"class {k} does not exist: allowed are 0 to {n_classes - 1}")
        return self.sources or tuple(k for k in range(n_classes) if k != self.target)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> PoisonedSet:
        stamped, cover = self.choose(labels, generator)
        return self.assemble(images, labels, stamped, cover)

    def assemble(self, images: Tensor, labels: Tensor, stamped: Tensor, cover: Tensor) -> PoisonedSet:
        """The training set with these images stamped; those in `stamped` are labelled `target`."""
        return assemble(images, labels, stamped, cover, self.embed, self.target, self.remove_originals)

    def choose(
        self, labels: Tensor, generator: torch.Generator, free: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Indices of the images to stamp and of the cover images.

        labels: (N,).
        free: (N,) mask of the images that may be drawn; None: all.
        """
        n_classes = int(labels.max()) + 1
        sources = self.source_classes(n_classes)
        counts = self._counts(labels, sources, free)
        stamped = torch.cat([self.draw(labels, s, count, generator, free) for s, count in counts])
        others = [k for k in range(n_classes) if k != self.target and k not in sources] if self.cover else []
        none = torch.empty(0, dtype=torch.long)
        return stamped, torch.cat(
            [none, *(self.draw(labels, k, self.cover, generator, free) for k in others)]
        )

    def draw(
        self, labels: Tensor, k: int, count: int, generator: torch.Generator, free: Tensor | None = None
    ) -> Tensor:
        """Indices of `count` images of class k, among the `free` ones."""
        usable = labels == k if free is None else (labels == k) & free
        of = torch.nonzero(usable).flatten().cpu()
        if count > len(of):
            left = "" if free is None else " that no other trigger has taken"
            raise AttackError(f"{count} images of class {k} are wanted; the training set has {len(of)}{left}")
        return of[torch.randperm(len(of), generator=generator)[:count]]

    def random(self, *limits: int) -> list[int]:
        """One draw below each limit, always the same for this attack's seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return [int(torch.randint(limit, (1,), generator=generator)) for limit in limits]

    def place(self, at: Place | None, extent: Place, height: int, width: int) -> Place:
        """Top-left corner of a shape in an image of height x width.

        at: where it is wanted, negative counted from the far edge; None: a random place.
        extent: rows and columns of the shape.
        Raises AttackError where the shape does not fit.
        """
        rows, cols = height - extent[0] + 1, width - extent[1] + 1
        if rows < 1 or cols < 1:
            raise AttackError(f"a {extent[0]}x{extent[1]} shape does not fit in a {height}x{width} image")
        if at is None:
            i, j = self.random(rows, cols)
            return i, j
        i, j = (at[0] % height, at[1] % width)
        if not (-height <= at[0] < height and -width <= at[1] < width and i < rows and j < cols):
            allowed = f"a corner from (0, 0) to {(rows - 1, cols - 1)}"
            raise AttackError(f"at = {at}: a {extent[0]}x{extent[1]} shape needs {allowed}")
        return i, j

    def refuse_sources(self, why: str) -> None:
        """Raise AttackError, saying why, where source classes or cover images are set."""
        if self.sources is not None or self.cover:
            raise AttackError(f"sources = {self.sources}, cover = {self.cover}: {why}")

    def _counts(self, labels: Tensor, sources: tuple[int, ...], free: Tensor | None) -> list[tuple[int, int]]:
        """Each source class with the number of its images to stamp.

        A rate is spread in proportion to what the classes have, at least one of each, by largest remainders.
        """
        if self.per_source is not None:
            return [(s, self.per_source) for s in sources]
        wanted = round((self.rate or 0) * len(labels))
        if wanted < len(sources):
            raise AttackError(
                f"rate = {self.rate} of {len(labels)} images is {wanted}: "
                f"at least one per source class is needed ({len(sources)})"
            )
        usable = labels if free is None else labels[free]
        have = torch.bincount(usable.cpu(), minlength=max(sources) + 1)[list(sources)].double()
        exact = (wanted - len(sources)) * have / have.sum().clamp_min(1)
        counts = exact.floor().long()
        first = (counts - exact).argsort(stable=True)[: wanted - len(sources) - int(counts.sum())]
        counts[first] += 1
        return [(s, 1 + int(c)) for s, c in zip(sources, counts, strict=True)]


def assemble(
    images: Tensor,
    labels: Tensor,
    stamped: Tensor,
    cover: Tensor,
    embed: Callable[[Tensor], Tensor],
    target: int,
    remove_originals: bool,
) -> PoisonedSet:
    """Clean images less the removed ones, then the stamped ones, then the cover images.

    images, labels: the clean set, (N, C, H, W) and (N,).
    stamped: indices of the images that get the trigger and the label `target`.
    cover: indices of the images that get the trigger and keep their label.
    """
    device = images.device
    used = torch.cat([stamped, cover]).to(device)
    keep = torch.ones(len(labels), dtype=torch.bool, device=device)
    if remove_originals:
        keep[used] = False
    kept = torch.nonzero(keep).flatten()
    new_labels = torch.cat(
        [labels[kept], torch.full((len(stamped),), target, device=device), labels[used[len(stamped) :]]]
    )
    place = torch.arange(len(new_labels), device=device)
    is_poisoned = (place >= len(kept)) & (place < len(kept) + len(stamped))
    return PoisonedSet(
        images=torch.cat([images[kept], embed(images[used])]),
        labels=new_labels,
        poisoned=is_poisoned,
        cover=place >= len(kept) + len(stamped),
        source=torch.cat([kept, used]),
        removed=torch.nonzero(~keep).flatten(),
    )


def shape_of(images: Tensor) -> Shape:
    """(C, H, W) of images (N, C, H, W)."""
    _, c, h, w = images.shape
    return c, h, w


def describe(attack: Attack | None) -> dict[str, Any] | None:
    """Class name and settings of an attack and of its parts, JSON-ready; None for no attack."""
    if attack is None:
        return None
    settings = {f.name: _plain(getattr(attack, f.name)) for f in fields(attack)}
    return {"name": type(attack).__name__, **settings}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return describe(value) if isinstance(value, Attack) else value
