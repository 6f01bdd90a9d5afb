"""What a detector gives back: a Scan, one row per class; and how one is made of what a search found.

A detector poses B problems, each a putative target with S putative source classes, and looks for the smallest
trigger of each. `Found` is what any search knows of them at its end; `assemble` makes the Scan. No decision is
taken here: verdicts are in `anomaly`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import files
from ..models import Cost
from ..settings import plain

if TYPE_CHECKING:
    from .base import Detector

L1_OF_MASK, L2_OF_PATTERN = "L1 norm of the mask", "L2 norm of the pattern"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The result of one detector on one model of K classes.

    norms: (K,) size of the smallest trigger found towards each class; small is suspicious.
    norm_name: which norm that is.
    pattern: (K, C, H, W) additive pattern v, or the replacement pattern when there is a mask.
    mask: (K, H, W) in [0, 1], or None.
    success: (K,) final share of the clean images that each trigger sends to its class.
    reached: (K,) did the trigger send the share pi there when it was last tried, on the images of that step or round?
        Where it did not, the norm is no norm of a working trigger: rules leave the class out.
    converged: (K,) did the search end by itself, before its budget of steps, rounds or queries was spent?
    weights: (K, K) final class weights, row t for target t, zero diagonal; or None.
    pair_norms: (K, K), row = source, column = target, NaN diagonal, where each pair was a problem; or None.
    pair_reached: (K, K) the same of `reached`, False diagonal; or None.
    trajectory: named tensors, steps first, NaN where a problem had ended.
    """

    detector: str
    settings: dict[str, Any]
    norms: Tensor
    norm_name: str
    pattern: Tensor
    success: Tensor
    reached: Tensor
    converged: Tensor
    cost: Cost
    mask: Tensor | None = None
    weights: Tensor | None = None
    pair_norms: Tensor | None = None
    pair_reached: Tensor | None = None
    trajectory: dict[str, Tensor] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.norms)

    @property
    def statistics(self) -> Tensor:
        """r_t = 1 / norm, (K,); large is suspicious (L-RED Sec. 3.2)."""
        return 1 / self.norms

    def embed(self, images: Tensor, target: int) -> Tensor:
        """Put the trigger recovered for `target` on images (N, C, H, W)."""
        pattern = self.pattern[target].to(images)
        if self.mask is None:
            return (images + pattern).clamp(0, 1)
        mask = self.mask[target].to(images)
        return images * (1 - mask) + pattern * mask

    def save(self, path: str | Path) -> None:
        """One safetensors file with the settings as JSON inside; written whole or not at all."""
        tensors = {k: getattr(self, k) for k in _TENSORS if getattr(self, k) is not None}
        tensors |= {f"trajectory/{k}": v for k, v in self.trajectory.items()}
        words = {k: getattr(self, k) for k in ("detector", "settings", "norm_name")}
        words |= {"cost": asdict(self.cost)}
        whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        with files.written(path) as partial:
            save_file(whole, partial, {"scan": json.dumps(words)})

    @classmethod
    def load(cls, path: str | Path) -> Scan:
        """Read what `save` wrote. Raises ValueError when the file is not a saved scan."""
        try:
            with safe_open(path, "pt") as file:
                words = json.loads(file.metadata()["scan"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            of_path = [k for k in tensors if k.startswith("trajectory/")]
            trajectory = {k.removeprefix("trajectory/"): tensors.pop(k) for k in of_path}
            return cls(**words | {"cost": Cost(**words["cost"])}, **tensors, trajectory=trajectory)
        except (SafetensorError, TypeError, KeyError) as e:
            raise ValueError(f"{path} is not a saved scan: {e}") from e


_OF_CLASSES = ("norms", "pattern", "success", "reached", "converged", "mask", "weights")
_TENSORS = (*_OF_CLASSES, "pair_norms", "pair_reached")


@dataclass(frozen=True)
class Problems:
    """B problems: target (B,), sources (B, S), class indices."""

    target: Tensor
    sources: Tensor

    @classmethod
    def all_to_one(cls, k: int) -> Problems:
        """K problems: all other classes to each target."""
        return cls(torch.arange(k), torch.tensor([[s for s in range(k) if s != t] for t in range(k)]))

    @classmethod
    def pairs(cls, k: int) -> Problems:
        """K(K-1) problems: one source, one target."""
        target, source = torch.tensor([[t, s] for t in range(k) for s in range(k) if s != t]).T
        return cls(target, source[:, None])

    def to(self, device: torch.device) -> Problems:
        """The same problems on a device."""
        return Problems(self.target.to(device), self.sources.to(device))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search knows of its B problems at its end.

    norms: (B,) size of the trigger.
    pattern: (B, C, H, W); mask: (B, H, W) or None.
    success: (B,) share of the clean images that it sends to the target, weighted by w.
    reached: (B,) was that share pi or more when the trigger was last tried, on the images of that step or round?
    q, w: (B, S) that share and the weight of each source class; None where the method has none.
    converged: (B,) did the search end by itself, before its budget was spent?
    steps: (B,) steps or rounds that it took.
    trajectory: named tensors (steps, B, ...), NaN where a problem had ended.
    """

    norms: Tensor
    pattern: Tensor
    success: Tensor
    reached: Tensor
    converged: Tensor
    mask: Tensor | None = None
    q: Tensor | None = None
    w: Tensor | None = None
    steps: Tensor | None = None
    trajectory: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, index: Tensor) -> Found:
        """The problems of this index alone, without their trajectory."""
        return replace(self, **{name: x[index] for name, x in self._tensors().items()}, trajectory={})

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """The problems of several searches one after the other; a trajectory is as long as the longest."""
        whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0]._tensors()}
        begun = next((part.trajectory for part in parts if part.trajectory), {})
        paths = {
            name: _side_by_side(
                [
                    part.trajectory.get(name, path.new_empty(0, len(part.norms), *path.shape[2:]))
                    for part in parts
                ]
            )
            for name, path in begun.items()
        }
        return replace(parts[0], **whole, trajectory=paths)

    def _tensors(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}


def _side_by_side(paths: Sequence[Tensor]) -> Tensor:
    """Paths (steps, B, ...) of several searches as one, NaN where one had ended."""
    longest = max(len(path) for path in paths)
    return torch.cat(
        [
            torch.cat([path, path.new_full((longest - len(path), *path.shape[1:]), float("nan"))])
            for path in paths
        ],
        dim=1,
    )


def assemble(detector: Detector, problems: Problems, found: Found, cost: Cost) -> Scan:
    """A Scan with a row per class; of several problems with one target, the one with the smallest norm."""
    k, rows = int(problems.target.max()) + 1, torch.arange(int(problems.target.max()) + 1)
    target, sources, norms = problems.target.cpu(), problems.sources.cpu(), found.norms.cpu()
    best, pair_norms, pair_reached, weights = rows, None, None, None
    if len(target) > k:
        best = torch.stack([torch.where(target == t, norms, torch.inf).argmin() for t in range(k)])
        pair_norms = torch.full((k, k), float("nan"))
        pair_norms[sources[:, 0], target] = norms
        pair_reached = torch.zeros(k, k, dtype=torch.bool)
        pair_reached[sources[:, 0], target] = found.reached.cpu()
    if found.w is not None:
        weights = torch.zeros(k, k)
        weights[rows[:, None], sources[best]] = found.w.cpu()[best]
    return Scan(
        detector=type(detector).__name__,
        settings=plain(detector),
        norms=norms[best],
        norm_name=detector.norm_name,
        pattern=found.pattern.cpu()[best],
        mask=None if found.mask is None else found.mask.cpu()[best],
        success=found.success.cpu()[best],
        reached=found.reached.cpu()[best],
        converged=found.converged.cpu()[best],
        weights=weights,
        pair_norms=pair_norms,
        pair_reached=pair_reached,
        trajectory=found.trajectory,
        cost=cost,
    )
