"""Several attacks in one training set, and the multi-trigger variants of Neural Cleanse VII-C/D and B3D
F.4-F.5.

The papers give no poison ratio for these; here every part names its own, and no image is stamped twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .badnets import ANCHORS, BadNets
from .base import Attack, AttackError, Needs, PoisonedSet


@dataclass(frozen=True, kw_only=True)
class Combined(Attack):
    """Two or more data-only attacks on one training set, each with its own target, sources,
    count and cover images.

    `embed` puts the first part's trigger on; use `parts` for the others. Raises AttackError for parts that
    train the model themselves.
    """

    parts: tuple[Attack, ...] = ()  # type: ignore[assignment]
    target: int = field(init=False)  # the first part's
    sources: tuple[int, ...] | None = field(init=False)
    per_source: int | None = field(init=False)
    rate: float | None = field(init=False)
    cover: int = field(init=False)
    remove_originals: bool = field(init=False)

    needs = Needs(data="some training images", labels=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if len(self.parts) < 2:
            raise AttackError(f"parts = {self.parts}: two or more attacks are needed")
        for part in self.parts:
            if part.needs.training or part.needs.model != "nothing" or isinstance(part, Combined):
                raise AttackError(
                    f"{type(part).__name__} cannot be a part: only attacks that poison data alone can"
                )
        for name in ("target", "sources", "per_source", "rate", "cover", "remove_originals"):
            object.__setattr__(self, name, getattr(self.parts[0], name))

    def embed(self, images: Tensor) -> Tensor:
        return self.parts[0].embed(images)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> PoisonedSet:
        free = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        removed = torch.zeros_like(free)
        done: list[PoisonedSet] = []
        for part in self.parts:
            stamped, cover = part.choose(labels, generator, free)
            used = torch.cat([stamped, cover]).to(labels.device)
            free[used] = False
            removed[used] = part.remove_originals
            done.append(part.assemble(images, labels, stamped, cover))
        rows = [torch.nonzero(p.poisoned | p.cover).flatten() for p in done]
        kept = torch.nonzero(~removed).flatten()
        new = {
            name: torch.cat([getattr(p, name)[r] for p, r in zip(done, rows)])
            for name in ("images", "labels", "poisoned", "cover", "source")
        }
        clean = torch.zeros(len(kept), dtype=torch.bool, device=labels.device)
        return PoisonedSet(
            images=torch.cat([images[kept], new["images"]]),
            labels=torch.cat([labels[kept], new["labels"]]),
            poisoned=torch.cat([clean, new["poisoned"]]),
            cover=torch.cat([clean, new["cover"]]),
            source=torch.cat([kept, new["source"]]),
            removed=torch.nonzero(removed).flatten(),
        )


def nine_triggers(
    *, target: int, rate: float, size: int = 4, colour: str | tuple[int, ...] = "white", seed: int = 0
) -> Combined:
    """One label, nine squares: four corners, four edges, centre (Neural Cleanse VII-D). rate: of the
    training set, per trigger.
    """
    return Combined(
        parts=tuple(
            BadNets(target=target, rate=rate, size=size, colour=colour, at=at, seed=seed) for at in ANCHORS
        ),
        seed=seed,
    )


def several_labels(*, targets: tuple[int, ...], rate: float, size: int = 3, seed: int = 0) -> Combined:
    """One noisy square per infected label, each with colours and a place of its own (Neural Cleanse VII-C,
    B3D F.4).

    rate: of the training set, per trigger. The places are the nine anchors in turn, so up to nine triggers
    do not overlap; the colours are a fresh draw per label, which is our reading of "mutually exclusive
    colour patterns".
    """
    anchors = sorted(ANCHORS, key=lambda name: ("centre" in name or "middle" in name, name))  # corners first
    return Combined(
        parts=tuple(
            BadNets(target=t, rate=rate, size=size, colour="noise", at=anchors[i % 9], seed=seed + i)
            for i, t in enumerate(targets)
        ),
        seed=seed,
    )
