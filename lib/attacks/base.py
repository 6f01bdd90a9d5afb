"""What every attack shares: which images are stamped, with which labels, and what becomes of the originals.

An attack is a frozen dataclass of plain values, so it can be written to JSON and hashed. `embed` puts the
trigger on images; `poison` makes a training set. The plan (L-RED Sec. A.4): stamp some images of each
source class, label them `target`, drop the originals; and, so that other classes stay clean, stamp `cover`
images of every class that is neither source nor target and keep their true labels.

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

Place = tuple[int, int]


class AttackError(ValueError):
    """A setting that this attack cannot carry out;
    the message names the setting, the value and what is allowed.
    """


@dataclass(frozen=True)
class PoisonedSet:
    """A training set after poisoning.

    images (N, C, H, W), labels (N,) as the trainer sees them. poisoned, cover: (N,) masks of stamped images
    labelled `target`, and of stamped images with their true label. source: (N,) index of each image in the
    clean set. removed: indices of clean images that are gone.
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

    images (N, C, H, W), labels (N,): the clean training set, on the training device. build(): a fresh
    network, the same at every call. fit(model, images, labels): trains it in place by the recipe, returns
    it in evaluation mode. epochs, batch_size: the recipe's, for loops of an attack's own. Everything random
    follows from `seed`.
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

    def clean_model(self) -> nn.Sequential:
        """A classifier trained on the clean set, as an attacker who needs one would train it."""
        model = self.build()
        self.fit(model, self.images, self.labels)
        return model


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Common settings; subclasses add the trigger.

    Exactly one of per_source and rate says how many images are stamped.
    Raises AttackError on impossible settings.
    """

    target: int
    sources: tuple[int, ...] | None = None  # None: every class but the target
    per_source: int | None = None  # stamped images per source class
    rate: float | None = None  # stamped share of the whole training set, drawn from the sources in proportion
    cover: int = 0  # stamped images with true labels, per class that is neither source nor target
    remove_originals: bool = True  # the attacker owns the originals; the trainer never sees them
    seed: int = 0  # draws what the trigger leaves open (place, channel, colours)

    needs: ClassVar[Needs] = Needs()
    learns: ClassVar[bool] = False  # does `embed` wait for tensors that only training makes?
    learnt: ClassVar[
        Mapping[str, Tensor]
    ] = {}  # those tensors, once `with_learnt` has put them on an instance

    def __post_init__(self) -> None:
        if self.sources is not None:
            object.__setattr__(self, "sources", tuple(int(s) for s in self.sources))
            if self.target in self.sources:
                raise AttackError(
                    f"target {self.target} is among the sources {self.sources}: sources must be other classes"
                )
            if not self.sources or len(set(self.sources)) != len(self.sources):
                raise AttackError(f"sources {self.sources}: one or more different classes are needed")
        if (self.per_source is None) == (self.rate is None):
            raise AttackError(f"per_source = {self.per_source}, rate = {self.rate}: give exactly one")
        if self.per_source is not None and self.per_source < 1:
            raise AttackError(f"per_source = {self.per_source}: 1 or more images are needed")
        if self.rate is not None and not 0 < self.rate < 1:
            raise AttackError(f"rate = {self.rate}: a share between 0 and 1 is needed")
        if self.cover < 0:
            raise AttackError(f"cover = {self.cover}: 0 or more images are allowed")

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] with the trigger on, same shape and range."""

    def source_classes(self, n_classes: int) -> tuple[int, ...]:
        """The source classes, spelled out for a task of n_classes.
        Raises AttackError for classes it does not have.
        """
        for k in (self.target, *(self.sources or ())):
            if not 0 <= k < n_classes:
                raise AttackError(f"class {k} does not exist: allowed are 0 to {n_classes - 1}")
        return self.sources or tuple(k for k in range(n_classes) if k != self.target)

    @property
    def parts(self) -> tuple[Attack, ...]:
        """The single attacks that this one consists of; itself for all but a composition."""
        return (self,)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> PoisonedSet:
        """Poison a clean training set: images (N, C, H, W), labels (N,). Does not change its arguments."""
        stamped, cover = self.choose(labels, generator)
        return self.assemble(images, labels, stamped, cover)

    def assemble(self, images: Tensor, labels: Tensor, stamped: Tensor, cover: Tensor) -> PoisonedSet:
        """The training set with the images of these indices stamped, those in `stamped` labelled `target`."""
        return assemble(images, labels, stamped, cover, self.embed, self.target, self.remove_originals)

    def choose(
        self, labels: Tensor, generator: torch.Generator, free: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Indices of the images to stamp and of the cover images,
        drawn among the `free` ones ((N,) mask; None: all).
        """
        n_classes = int(labels.max()) + 1
        sources = self.source_classes(n_classes)
        stamped = torch.cat(
            [self._draw(labels, s, c, generator, free) for s, c in self._counts(labels, sources, free)]
        )
        others = [k for k in range(n_classes) if k != self.target and k not in sources] if self.cover else []
        none = torch.empty(0, dtype=torch.long)
        return stamped, torch.cat(
            [none, *(self._draw(labels, k, self.cover, generator, free) for k in others)]
        )

    def train(self, job: Job) -> tuple[nn.Sequential, dict[str, Tensor]]:
        """The attacked classifier, trained, and what the attack has learnt (nothing here: it only poisons
        the data).
        """
        poisoned = self.poison(job.images, job.labels, job.generator)
        model = job.build()
        job.fit(model, poisoned.images, poisoned.labels)
        return model, {}

    def with_learnt(self, tensors: Mapping[str, Tensor]) -> Self:
        """This attack with the tensors that `train` returned, so that `embed` works."""
        if not self.learns:
            return self
        ready = replace(self)
        object.__setattr__(ready, "learnt", dict(tensors))
        return ready

    def require_learnt(self) -> Mapping[str, Tensor]:
        """The learnt tensors. Raises AttackError before training."""
        if not self.learnt:
            raise AttackError(
                f"the trigger of {type(self).__name__} is learnt in training: use the attack of a trained classifier"
            )
        return self.learnt

    def random(self, *limits: int) -> list[int]:
        """One draw below each limit, always the same for this attack's seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return [int(torch.randint(limit, (1,), generator=generator)) for limit in limits]

    def place(self, at: Place | None, extent: Place, height: int, width: int) -> Place:
        """Top-left corner of a shape of this extent: `at` if it fits (negative: from the far edge), a
        random one if `at` is None.
        """
        rows, cols = height - extent[0] + 1, width - extent[1] + 1
        if rows < 1 or cols < 1:
            raise AttackError(f"a {extent[0]}x{extent[1]} shape does not fit in a {height}x{width} image")
        if at is None:
            i, j = self.random(rows, cols)
            return i, j
        i, j = (at[0] % height, at[1] % width)
        if not (-height <= at[0] < height and -width <= at[1] < width and i < rows and j < cols):
            raise AttackError(
                f"at = {at}: a {extent[0]}x{extent[1]} shape needs a corner from (0, 0) to {(rows - 1, cols - 1)}"
            )
        return i, j

    def _counts(self, labels: Tensor, sources: tuple[int, ...], free: Tensor | None) -> list[tuple[int, int]]:
        """How many images of each source class: a rate is spread in proportion to what the classes have, at
        least one of each, by largest remainders.
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

    def _draw(
        self, labels: Tensor, k: int, count: int, generator: torch.Generator, free: Tensor | None = None
    ) -> Tensor:
        usable = labels == k if free is None else (labels == k) & free
        of = torch.nonzero(usable).flatten().cpu()
        if count > len(of):
            left = "" if free is None else " that no other trigger has taken"
            raise AttackError(f"{count} images of class {k} are wanted; the training set has {len(of)}{left}")
        return of[torch.randperm(len(of), generator=generator)[:count]]


def assemble(
    images: Tensor,
    labels: Tensor,
    stamped: Tensor,
    cover: Tensor,
    embed: Any,
    target: int,
    remove_originals: bool,
) -> PoisonedSet:
    """Clean images less the removed originals, then stamped ones labelled `target`,
    then cover images with their own labels.
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


def describe(attack: Attack | None) -> dict[str, Any] | None:
    """An attack as JSON-ready values: its class name and every setting,
    those of its parts included; None for no attack.
    """
    if attack is None:
        return None
    return {
        "name": type(attack).__name__,
        **{f.name: _plain(getattr(attack, f.name)) for f in fields(attack)},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return describe(value) if isinstance(value, Attack) else value
