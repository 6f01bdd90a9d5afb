"""The weights explorer: sliders for the shares q and the temperature T, bars for the weights w.

The page computes Eqs. (7) and (8) of "L-RED: Efficient Post-Training Detection of Imperceptible Backdoor
Attacks without Access to the Training Set" (Xiang et al. 2021), as `detectors.lred_annealing` does.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .assets import Explorer, explorer


def weights_explorer(
    q: Sequence[float] | Tensor, *, names: Sequence[str] | None = None, n: int = 8
) -> Explorer:
    """Sliders for q and T, bars for w: Eqs. (7) and (8).

        weights_explorer([0.0, 0.125, 0.875])

    q: shares to start from, (S,), in [0, 1].
    names: of the S source classes; default: their numbers.
    n: images per class, so q moves in steps of 1/n.
    """
    shares = [float(x) for x in q]
    labels = [str(s) for s in range(len(shares))] if names is None else list(names)
    if len(shares) < 2 or not all(0 <= x <= 1 for x in shares) or len(labels) != len(shares):
        raise ValueError(
            f"q = {shares}, names = {labels}: two or more shares in [0, 1] and as many names are needed"
        )
    return explorer("weights", {"q": shares, "names": labels, "n": int(n)})
