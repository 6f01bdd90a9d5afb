"""Several attacks in one training set: several triggers, several infected labels.

The multi-trigger variants are those of Neural Cleanse (Wang et al. 2019, Secs. VII-C, VII-D) and B3D (Dong
et al. 2021, F.4, F.5). The papers give no poison ratio for these; here every part names its own, and no
image is stamped twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .badnets import ANCHORS, BadNets
from .base import Attack, AttackError, PoisonedSet, SingleAttack


@dataclass(frozen=True, kw_only=True)
class Combined(Attack):
    """Two or more attacks on one training set, each with settings of its own.

    Only attacks that poison data alone can be parts. There is no one trigger to embed: each part has its own.
    """

    parts: tuple[SingleAttack, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.parts) < 2:
            raise AttackError(f"parts = {self.parts!r}: two or more attacks are needed")
        for part in self.parts:
            if part.needs.model != "nothing" or part.needs.training:
                name = type(part).__name__
                raise AttackError(f"parts: {name} cannot be a part: only attacks that poison data alone can")

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
    """One label, nine squares: at the four corners, the four edges and the centre.

    rate: stamped share of the training set, per trigger.
    """
    first = BadNets(target=target, rate=rate, size=size, colour=colour, seed=seed)
    return Combined(parts=tuple(replace(first, at=at) for at in ANCHORS), seed=seed)


def several_labels(*, targets: tuple[int, ...], rate: float, size: int = 3, seed: int = 0) -> Combined:
    """One noisy square per infected label, each with colours and a place of its own.

    targets: the infected labels.
    rate: stamped share of the training set, per trigger.
    The places are the nine anchors in turn, so up to nine triggers do not overlap; the colours are a fresh
    draw per label, which is our reading of Neural Cleanse's "mutually exclusive colour patterns".
    """
    anchors = sorted(ANCHORS, key=lambda name: ("centre" in name or "middle" in name, name))  # corners first
    parts = (
        BadNets(target=t, rate=rate, size=size, colour="noise", at=anchors[i % 9], seed=seed + i)
        for i, t in enumerate(targets)
    )
    return Combined(parts=tuple(parts), seed=seed)
