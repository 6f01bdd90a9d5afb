"""What a detector gives back: per-class norms, the recovered trigger, and what it cost. No decision: that
is `lib.anomaly`'s room.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def at_least(settings: object, **least: float) -> None:
    """Raise ValueError naming the first setting that is below its least value, or not a number."""
    for name, value in least.items():
        if not getattr(settings, name) >= value:
            raise ValueError(f"{name} = {getattr(settings, name)}: {value:g} or more is needed")


@dataclass
class Cost:
    """A ledger. One image through the network forward counts 1 in `forward`, its gradient 1 in `backward`,
    a black-box answer 1 in `queries`.
    """

    forward: int = 0
    backward: int = 0
    queries: int = 0
    seconds: float = 0.0

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Add the time spent inside to `seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The result of one detector on one model of K classes.

    norms: (K,) size of the smallest trigger found towards each class; small is suspicious. `norm_name` says
    which norm.
    pattern: (K, C, H, W) additive pattern v, or the replacement pattern when there is a mask (K, H, W) in
    [0, 1].
    success: (K,) final success share of each trigger on the clean images. converged: (K,) did it reach its
    stop criterion?
    weights: (K, K) final class weights, row t for target t, zero diagonal. pair_norms: (K, K), row =
    source, column = target, NaN diagonal, for methods that solve one problem per pair. trajectory: named
    tensors with steps first, NaN-padded.
    """

    detector: str
    settings: dict[str, Any]
    norms: Tensor
    norm_name: str
    pattern: Tensor
    success: Tensor
    converged: Tensor
    cost: Cost
    mask: Tensor | None = None
    weights: Tensor | None = None
    pair_norms: Tensor | None = None
    trajectory: dict[str, Tensor] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        return len(self.norms)

    @property
    def statistics(self) -> Tensor:
        """r_t = 1 / norm, (K,), large is suspicious (L-RED Sec. 3.2)."""
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
        path = Path(path)
        tensors = {k: getattr(self, k) for k in _TENSORS if getattr(self, k) is not None}
        tensors |= {f"trajectory/{k}": v for k, v in self.trajectory.items()}
        plain = {k: getattr(self, k) for k in ("detector", "settings", "norm_name")} | {
            "cost": asdict(self.cost)
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            partial,
            {"scan": json.dumps(plain)},
        )
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> Scan:
        """Read what `save` wrote. Raises ValueError when the file is not a saved scan."""
        try:
            with safe_open(path, "pt") as file:
                plain = json.loads(file.metadata()["scan"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            trajectory = {
                k.removeprefix("trajectory/"): tensors.pop(k)
                for k in list(tensors)
                if k.startswith("trajectory/")
            }
            return cls(**plain | {"cost": Cost(**plain["cost"])}, **tensors, trajectory=trajectory)
        except (SafetensorError, TypeError, KeyError) as e:
            raise ValueError(f"{path} is not a saved scan: {e}") from e


_TENSORS = ("norms", "pattern", "success", "converged", "mask", "weights", "pair_norms")


class Detector(Protocol):
    """A frozen dataclass of settings with one method."""

    def scan(
        self,
        model: nn.Module,
        clean: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Scan:
        """Scan `model`, images -> logits (N, K), with clean images (K, n, C, H, W),
        n per class, correctly classified.
        """


def check_clean(clean: Tensor) -> None:
    """Raise ValueError unless `clean` is (K, n, C, H, W) with K >= 2 and values in [0, 1]."""
    if clean.ndim != 5 or clean.shape[0] < 2 or clean.shape[1] < 1:
        raise ValueError(
            f"clean images have shape {tuple(clean.shape)}: (K, n, C, H, W) with K >= 2 and n >= 1 is needed"
        )
    if not (clean.min() >= 0 and clean.max() <= 1):
        raise ValueError(
            f"clean images run from {float(clean.min()):g} to {float(clean.max()):g}: values in [0, 1] are needed"
        )


def clip(x: Tensor) -> Tensor:
    """[x]_c of L-RED Eq. (1): x clipped to [0, 1], with derivative 1 on [0, 1], the bounds included, 0 outside.

    The derivative of torch.clamp at the bounds is 1 in the papers' time and 0 in recent releases. With 0 no
    search could write on a black or white ground, where every pixel of every image lies on a bound.
    """
    return torch.where((x >= 0) & (x <= 1), x, x.detach().clamp(0, 1))


def seeded(generator: torch.Generator | None, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator given, or where there is none one of seed 0 on `device`."""
    return generator or torch.Generator(device).manual_seed(0)


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode with no parameter asking for a gradient; as it was afterwards."""
    was_training, asked = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in asked:
        p.requires_grad_(False)
    try:
        yield model
    finally:
        for p in asked:
            p.requires_grad_(True)
        model.train(was_training)
