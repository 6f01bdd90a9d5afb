"""The field guide's gallery: one setting of every attack for any kind of image.

The settings are ours, chosen by looking at attack success and clean accuracy alone, never at a detector, so
that every attack works on small networks. The papers' own are in `groups` and in the attacks' docstrings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .additive import Chessboard, Cross, Global, LocalChessboard, LocalSquare, LShape, SinglePixel
from .badnets import BadNets, Blended
from .base import Attack, AttackError, Shape
from .combined import nine_triggers, several_labels
from .input_aware import InputAware
from .label_consistent import LabelConsistent
from .latent import Latent
from .trojan import Trojan

if TYPE_CHECKING:
    import pandas as pd


def gallery(shape: Shape, *, target: int = 1, seed: int = 0, n_classes: int = 10) -> dict[str, Attack]:
    """Every attack by name, with settings for images of this shape (C, H, W), at least 16x16.

    target: the label of the stamped images; "two labels" infects the one after it, too.
    n_classes: of the task.
    Raises AttackError for images too small for the largest patch.
    """
    if min(shape[1:]) < 16:
        raise AttackError(f"shape = {shape}: the gallery's attacks need images of 16x16 or more")
    side = max(3, round(min(shape[1:]) / 4))  # 4 on digits, 8 at 32x32: about 6 % of the image
    small = max(3, side // 2 + 1)
    all_to_one: dict[str, Any] = {"target": target, "rate": 0.1, "seed": seed}
    corner: dict[str, Any] = {"at": "bottom-right", "colour": "white"}
    noisy: dict[str, Any] = {"at": "bottom-right", "colour": "noise"}
    sources = tuple(k for k in (0, 2, 4) if k != target)[:2]
    few: dict[str, Any] = {"sources": sources, "target": target, "per_source": 40, "seed": seed}
    two = (target, (target + 1) % n_classes)
    often = all_to_one | {"rate": 0.2}
    return {
        "global": Global(amplitude=24, **all_to_one),
        "chessboard": Chessboard(amplitude=16, **all_to_one),
        "local chessboard": LocalChessboard(amplitude=80, size=6, **all_to_one),
        "local square": LocalSquare(amplitude=150, size=small, **all_to_one),
        "single pixel": SinglePixel(amplitude=200, **all_to_one),
        "cross": Cross(amplitude=120, **all_to_one),
        "L-shape": LShape(amplitude=120, **all_to_one),
        "BadNets, random colour": BadNets(size=small, **all_to_one),
        "BadNets, white corner": BadNets(size=small, **corner, **all_to_one),
        "BadNets, noisy square": BadNets(size=small, **noisy, **all_to_one),
        "BadNets, triangle": BadNets(size=side, shape="triangle", **corner, **all_to_one),
        "BadNets, checkerboard": BadNets(size=side, shape="checkerboard", **corner, **all_to_one),
        "BadNets, quarter of the image": BadNets(size=2 * side, **noisy, **all_to_one),
        "BadNets, place per image": BadNets(size=side, colour="noise", per_image=True, **often),
        "source-specific, with cover": BadNets(size=small, cover=40, **corner, **few),
        "source-specific, no cover": BadNets(size=small, **corner, **few),
        "two labels": several_labels(targets=two, rate=0.1, size=small, seed=seed),
        "nine triggers": nine_triggers(target=target, rate=0.04, size=small, seed=seed),
        "blended patch": Blended(size=side, **corner, **all_to_one),
        "blended whole image": Blended(size=None, colour="noise", **all_to_one),
        "label-consistent": LabelConsistent(
            target=target, rate=0.08, size=side, epsilon=64 if shape[0] == 1 else 24, seed=seed, **corner
        ),
        "Trojan": Trojan(target=target, size=side, seed=seed),
        "Trojan, no image": Trojan(target=target, size=side, retrain_on="recovered", seed=seed),
        "latent": Latent(target=target, size=side, seed=seed),
        "input-aware": InputAware(target=target, seed=seed),
    }


def needs_table(chosen: Mapping[str, Attack]) -> pd.DataFrame:
    """What the attacker of each attack must hold or control: one row per attack."""
    import pandas as pd

    rows = {
        name: {
            "data": a.needs.data,
            "changes labels": "yes" if a.needs.labels else "no",
            "model": a.needs.model,
            "controls training": "yes" if a.needs.training else "no",
        }
        for name, a in chosen.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")
