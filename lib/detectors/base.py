"""What every detector shares: `scan`, what it needs, one run under way, and the tools of a search.

A detector is frozen settings with `search`; what it finds becomes a Scan in `scan.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..models import Cost, Probabilities
from ..settings import Settings
from .scan import Scan


class Recorder:
    """Keeps named values of every problem at every step, and the trigger `v` at every `every`-th.

    It keeps nothing when `every` is 0.
    """

    def __init__(self, every: int, n_problems: int) -> None:
        self.every, self.n = every, n_problems
        self.rows: dict[str, list[Tensor]] = {}

    def keep(self, step: int, active: Tensor, **values: Tensor) -> None:
        """Values (A, ...) of the problems `active` (A,) at this step."""
        if not self.every:
            return
        for name, value in values.items():
            if name == "v" and step % self.every:
                continue
            row = torch.full((self.n, *value.shape[1:]), float("nan"))
            row[active.cpu()] = value.detach().float().cpu()
            self.rows.setdefault(name, []).append(row)

    def tensors(self, *, trigger: str = "v") -> dict[str, Tensor]:
        """What was kept, steps first; `trigger` is the name that `v` goes by from now on."""
        return {trigger if name == "v" else name: torch.stack(rows) for name, rows in self.rows.items()}


@dataclass(frozen=True)
class Needs:
    """What a detector must be given.

    access: "gradients", a network to differentiate, or "answers", anything that gives probabilities.
    images: clean images of every class? Without them only their shape is used.
    """

    access: str = "gradients"
    images: bool = True


@dataclass(frozen=True, kw_only=True)
class Run:
    """One scan under way: what a detector is given, and the ledger that it keeps.

    model: images (N, C, H, W) -> logits (N, K), or for detectors that need answers alone also a callable that
        gives probabilities.
    clean: (K, n, C, H, W).
    generator: of everything random; on the device of the images.
    stop: asked before every step or round, by several threads in turn; True ends the search with what there is.
    """

    model: Any
    clean: Tensor
    generator: torch.Generator
    cost: Cost = field(default_factory=Cost)
    progress: bool = False
    stop: Callable[[], bool] | None = None

    @classmethod
    def of(cls, model: Any, clean: Tensor, *, generator: torch.Generator | None = None, **more: Any) -> Run:
        """A run on these; without a generator, random draws are those of seed 0."""
        return cls(model=model, clean=clean, generator=seeded(generator, clean.device), **more)

    @property
    def stopped(self) -> bool:
        """Has somebody asked to stop?"""
        return self.stop is not None and self.stop()


class Detector(Settings, ABC):
    """Frozen settings with one method, `scan`; a subclass says how in `search`, and what it `needs`."""

    needs: ClassVar[Needs] = Needs()
    norm_name: ClassVar[str]  # which norm of its triggers a scan has

    @property
    def pairs(self) -> bool:
        """Does it solve a problem for every pair of classes, so that a scan has `pair_norms`?"""
        return False

    def scan(
        self,
        model: nn.Module | Probabilities,
        clean: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
        stop: Callable[[], bool] | None = None,
        **more: Any,
    ) -> Scan:
        """Look for the smallest trigger towards every class of a model.

            scan = LRED().scan(model, clean)

        model: images (N, C, H, W) in [0, 1] -> logits (N, K); where `needs.access` is "answers", also any callable
            that gives probabilities (N, K).
        clean: (K, n, C, H, W) in [0, 1], n images per class, correctly classified.
        generator: draws whatever is random, on the device of the images; without one, as seed 0.
        stop: asked before every step; True ends the scan with what there is.
        more: what this detector's `search` takes besides.
        Raises ValueError for images of another shape or range, and for a model without gradients where they are
        needed.
        """
        check_clean(clean, least=int(self.needs.images))
        if self.needs.access == "gradients" and not isinstance(model, nn.Module):
            kind = type(model).__name__
            raise ValueError(f"{type(self).__name__} needs gradients: a network is needed, not a {kind}")
        run = Run.of(model, clean, generator=generator, progress=progress, stop=stop)
        return self.search(run, **more)

    @abstractmethod
    def search(self, run: Run) -> Scan:
        """Do it: everything that is asked of the model is booked in `run.cost`."""


def check_clean(clean: Tensor, *, least: int = 1) -> None:
    """Raise ValueError unless `clean` is (K, n, C, H, W) with K >= 2, n >= least and values in [0, 1]."""
    if clean.ndim != 5 or clean.shape[0] < 2 or clean.shape[1] < least:
        have = f"clean images have shape {tuple(clean.shape)}"
        raise ValueError(f"{have}: (K, n, C, H, W) with K >= 2 and n >= {least} is needed")
    if clean.numel() and not (clean.min() >= 0 and clean.max() <= 1):
        have = f"clean images run from {float(clean.min()):g} to {float(clean.max()):g}"
        raise ValueError(f"{have}: values in [0, 1] are needed")


def clip(x: Tensor) -> Tensor:
    """[x]_c of L-RED Eq. (1): x clipped to [0, 1], with derivative 1 on [0, 1], bounds included, and 0 outside.

    The derivative of torch.clamp at the bounds is 1 in the papers' time and 0 in recent releases. With 0 no
    search could write on a black or white ground, where every pixel of every image lies on a bound.
    """
    return torch.where((x >= 0) & (x <= 1), x, x.detach().clamp(0, 1))


def of_others(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All images (N, C, H, W), and for each class the positions (K, M) of those of the other classes, shuffled.

    Their order does not depend on how the classes are numbered. clean: (K, n, C, H, W).
    """
    k, n = clean.shape[:2]
    images = clean.flatten(0, 1)
    weight = torch.rand(clean.shape[2:], generator=torch.Generator().manual_seed(0)).to(clean)
    by_content = (images * weight).flatten(1).sum(1).argsort()
    order = by_content[torch.randperm(k * n, generator=generator, device=generator.device).to(clean.device)]
    label = order // n
    return images[order], torch.stack([torch.nonzero(label != t).flatten() for t in range(k)])


def seeded(generator: torch.Generator | None, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator given, or where there is none one of seed 0 on `device`."""
    return generator or torch.Generator(device).manual_seed(0)
