"""Which neurons answer to a trigger: those that are more active with it than without.

Source: "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (Wang et al. 2019),
Sec. V-C.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from ..models import Site, activations


def activation_gap(
    model: nn.Module, trigger: Callable[[Tensor], Tensor], images: Tensor, layer: str | Site
) -> Tensor:
    """Mean activation on stamped images less the mean on the clean ones, per neuron, (U,).

    trigger: a Trigger, or any function that stamps images (N, C, H, W).
    layer: as in `models.find`.
    """
    return (activations(model, trigger(images), layer) - activations(model, images, layer)).mean(0)


def top(gap: Tensor, share: float = 1.0) -> Tensor:
    """Indices of the neurons with the largest gap (U,), largest first; ties in order of index.

    share: max(1, ceil(share * U)) of them. Raises ValueError unless it lies in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: a share of neurons in (0, 1] is needed")
    count = max(1, math.ceil(share * len(gap) - 1e-9))
    return gap.argsort(descending=True, stable=True)[:count]
