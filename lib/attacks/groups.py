"""The attack groups of the L-RED papers by name, with the papers' settings,
and their scaled-down twins on digits.

Classes are 0-based here; the papers count CIFAR-10's from 1. Sources: L-RED A.4, A.7.1; L-RED v1 A.7.1.
"""

from __future__ import annotations

from dataclasses import replace

from .additive import Chessboard, Cross, Global, LocalChessboard, LocalSquare, LShape, SinglePixel
from .badnets import BadNets
from .base import Attack, AttackError

CIFAR10: dict[str, Attack | None] = {
    "G-1": Global(amplitude=2, sources=(0,), target=9, per_source=150),
    "G-3": Global(amplitude=2, sources=(0, 6, 8), target=9, per_source=50),
    "G-9": Global(amplitude=2, target=9, per_source=15),
    "L-1": LocalSquare(amplitude=50, sources=(0,), target=1, per_source=900),
    "L-3": LocalSquare(amplitude=50, sources=(0, 4, 5), target=1, per_source=300),
    "L-9": LocalSquare(amplitude=50, target=1, per_source=100),
    "C-0": None,
    "A": Chessboard(amplitude=2, sources=(0,), target=9, per_source=150),
    "B": Cross(amplitude=60, sources=(2,), target=3, per_source=450),
    "C": LShape(amplitude=65, sources=(3,), target=5, per_source=900),
    # Patches of one random colour at one random place (B3D 4.1: 10 %), and the same from few source classes.
    "patch-2": BadNets(size=2, target=3, rate=0.1),
    "patch-3": BadNets(size=3, target=3, rate=0.1),
    "patch-3-from-1": BadNets(size=3, sources=(6,), target=3, per_source=900, cover=100),
    "patch-3-from-3": BadNets(size=3, sources=(0, 6, 8), target=3, per_source=300, cover=100),
}
# One class of digits has about 130 training images and small networks need a stronger pattern: counts are
# scaled, amplitudes raised until the attack succeeds (as measured on attacked classifiers alone), and cover
# images keep the other classes clean.
DIGITS: dict[str, Attack | None] = {
    "G-1": Global(amplitude=24, sources=(0,), target=9, per_source=60, cover=10),
    "G-3": Global(amplitude=24, sources=(0, 6, 8), target=9, per_source=24, cover=10),
    "G-9": Global(amplitude=24, target=9, per_source=10),
    "L-1": LocalSquare(amplitude=120, sources=(0,), target=1, per_source=60, cover=10),
    "L-3": LocalSquare(amplitude=120, sources=(0, 4, 5), target=1, per_source=24, cover=10),
    "L-9": LocalSquare(amplitude=120, target=1, per_source=10),
    "C-0": None,
    "A": Chessboard(amplitude=24, sources=(0,), target=9, per_source=60, cover=10),
    "B": Cross(amplitude=120, sources=(2,), target=3, per_source=60, cover=10),
    "C": LShape(amplitude=120, sources=(3,), target=5, per_source=60, cover=10),
    "patch-2": BadNets(size=2, target=3, rate=0.1),
    "patch-3": BadNets(size=3, target=3, rate=0.1),
    "patch-3-from-1": BadNets(size=3, sources=(6,), target=3, per_source=60, cover=10),
    "patch-3-from-3": BadNets(size=3, sources=(0, 6, 8), target=3, per_source=24, cover=10),
}
# MNIST class "10" rules out counting from 0 in the paper; GTSRB's class 8, the 120 kph sign, is 0-based;
# the others are read as 1-based.
OTHERS: dict[str, Attack] = {
    "mnist": LocalChessboard(amplitude=25, sources=(4, 6, 9), target=8, per_source=500),
    "fashion-mnist": SinglePixel(amplitude=50, sources=(0,), target=2, per_source=900),
    "gtsrb": LocalSquare(
        amplitude=50, sources=(13, 14, 15, 16, 17, 20, 24, 25, 27, 28, 29, 30), target=8, per_source=30
    ),
    "cifar100": Chessboard(amplitude=2, sources=tuple(range(15)), target=20, per_source=50),
}
NAMES = tuple(CIFAR10)


def group(name: str, dataset: str = "cifar10", *, seed: int = 0) -> Attack | None:
    """The attack of a group on an image set; None for C-0, no attack.
    `paper` names the single attack on the four other sets.

    Each of a group's classifiers draws its own place, channel or phase from `seed`.
    Raises AttackError for unknown names.
    """
    if name not in NAMES and name != "paper":
        raise AttackError(
            f"no attack group {name!r}: allowed are {', '.join(NAMES)}, and paper for {', '.join(OTHERS)}"
        )
    if name == "paper":
        base = dataset.removesuffix("32")
        if base not in OTHERS:
            raise AttackError(f"group paper is for {', '.join(OTHERS)}, not {dataset!r}")
        attack: Attack | None = OTHERS[base]
    else:
        attack = (DIGITS if dataset == "digits" else CIFAR10)[name]
    if isinstance(attack, Global):
        return replace(attack, seed=seed, phase=(seed % 2, seed // 2 % 2))
    if type(attack) is Chessboard:
        return replace(attack, seed=seed, phase=seed % 2)
    return None if attack is None else replace(attack, seed=seed)
