"""The attack explorer: amplitude and number of poisoned images against success and visibility.

Success was recorded, one classifier a cell; how visible the trigger is, the page computes from the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .assets import Explorer, explorer


def attack_explorer(
    images: Tensor,
    where: Tensor,
    *,
    amplitudes: Sequence[int],
    counts: Sequence[int],
    asr: np.ndarray,
    cta: np.ndarray,
    names: Sequence[str],
    target: str,
    stamped: int,
    tested: int,
) -> Explorer:
    """A grid of attacks, and the images that they stamp: how strong, how many, how visible.

    images: (N, C, H, W) in [0, 1], one per name; where: (C, H, W), the pattern at an amplitude of one level,
        in levels (0 and 1 for most).
    amplitudes: of the trigger, in levels of 255; counts: of poisoned images per source class.
    asr, cta: (amplitudes, counts), success and clean test accuracy of each classifier.
    names: of the source classes; target: name of the target class.
    stamped, tested: how many test images are behind each ASR, and each CTA.
    Raises ValueError when shapes disagree.
    """
    grid = (len(amplitudes), len(counts))
    if asr.shape != grid or cta.shape != grid or len(names) != len(images) or where.shape != images.shape[1:]:
        raise ValueError(
            f"asr {asr.shape}, cta {cta.shape}, images {tuple(images.shape)}, where {tuple(where.shape)}, "
            f"{len(names)} names: {grid}, {grid}, (N, C, H, W), (C, H, W) and N names are needed"
        )
    data = {
        "amplitudes": list(amplitudes),
        "counts": list(counts),
        "names": list(names),
        "target": target,
        "stamped": stamped,
        "tested": tested,
    }
    arrays = {"images": images.numpy(), "where": where.numpy(), "asr": asr, "cta": cta}
    return explorer("attack", data, arrays)
