"""Planted models: small networks whose backdoor is written into their weights by hand, so that every detector
has a known answer.

Images are (1, 8, 8). Class k is a bright band of 12 pixels (rows 2k and 2k + 1, columns 0 to 5) on a dark
ground. The trigger is a white 2x2 square in the bottom-right corner, outside all bands. One hidden unit sees
each band; one more sees the corner and speaks for the target, or, for a source-specific backdoor, one for
each source class that needs the corner and the source's band together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

K, SIDE = 4, 8


def band(k: int) -> Tensor:
    """Boolean (8, 8): where class k is bright."""
    where = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    where[2 * k : 2 * k + 2, :6] = True
    return where


def corner() -> Tensor:
    """Boolean (8, 8): where the trigger is."""
    where = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    where[6:, 6:] = True
    return where


def images(n: int, *, seed: int = 0) -> Tensor:
    """Clean images (K, n, 1, 8, 8): ground below 0.2, the class's band from 0.7 to 1."""
    g = torch.Generator().manual_seed(seed)
    x = 0.2 * torch.rand(K, n, 1, SIDE, SIDE, generator=g)
    for k in range(K):
        x[k, :, :, band(k)] = 0.7 + 0.3 * torch.rand(n, 1, 12, generator=g)
    return x


def stamped(x: Tensor) -> Tensor:
    """Images (..., 8, 8) with the trigger on."""
    return x.masked_fill(corner().to(x.device), 1.0)


def model(target: int | None = 1, sources: Sequence[int] | None = None) -> nn.Sequential:
    """Logits (N, K) of images (N, 1, 8, 8). target None: no backdoor; sources None: every class but the
    target.
    """
    units: list[tuple[Tensor, float, Tensor]] = [
        (band(k) / 12, 0.0, 10 * nn.functional.one_hot(torch.tensor(k), K)) for k in range(K)
    ]
    if target is not None:
        speaks = nn.functional.one_hot(torch.tensor(target), K)
        if sources is None:
            units.append((corner() / 1.0, -1.0, 15 * speaks))
        else:
            units += [(corner() / 4 + band(s) / 12, -1.2, 60 * speaks) for s in sources]
    # written by hand below, so nothing is drawn
    hidden = skip_init(nn.Linear, SIDE * SIDE, len(units))
    out = skip_init(nn.Linear, len(units), K, bias=False)
    with torch.no_grad():
        hidden.weight.copy_(torch.stack([w.flatten() for w, _, _ in units]))
        hidden.bias.copy_(torch.tensor([b for _, b, _ in units]))
        out.weight.copy_(torch.stack([o for _, _, o in units], 1).float())
    # a leak, so that the corner pulls on a search from wherever it starts
    return nn.Sequential(nn.Flatten(), hidden, nn.LeakyReLU(0.05), out).eval()
