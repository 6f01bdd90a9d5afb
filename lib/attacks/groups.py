"""The attack groups of the L-RED papers by name, and their twins on digits.

After Secs. A.4 and A.7.1 of L-RED (Xiang, Miller and Kesidis 2021), and A.7.1 of its first version (2020).
Classes are 0-based here; the papers count CIFAR-10's from 1.
"""

from __future__ import annotations

from dataclasses import replace

from ..settings import shown
from .additive import Chessboard, Cross, Global, LocalChessboard, LocalSquare, LShape, SinglePixel
from .badnets import BadNets
from .base import AttackError, SingleAttack

NO_ATTACK = "C-0"  # of every data set
Groups = dict[str, SingleAttack]

CIFAR10: Groups = {
    "G-1": Global(amplitude=2, sources=(0,), target=9, per_source=150),
    "G-3": Global(amplitude=2, sources=(0, 6, 8), target=9, per_source=50),
    "G-9": Global(amplitude=2, target=9, per_source=15),
    "L-1": LocalSquare(amplitude=50, sources=(0,), target=1, per_source=900),
    "L-3": LocalSquare(amplitude=50, sources=(0, 4, 5), target=1, per_source=300),
    "L-9": LocalSquare(amplitude=50, target=1, per_source=100),
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
DIGITS: Groups = {
    "G-1": Global(amplitude=24, sources=(0,), target=9, per_source=60, cover=10),
    "G-3": Global(amplitude=24, sources=(0, 6, 8), target=9, per_source=24, cover=10),
    "G-9": Global(amplitude=24, target=9, per_source=10),
    "L-1": LocalSquare(amplitude=120, sources=(0,), target=1, per_source=60, cover=10),
    "L-3": LocalSquare(amplitude=120, sources=(0, 4, 5), target=1, per_source=24, cover=10),
    "L-9": LocalSquare(amplitude=120, target=1, per_source=10),
    "A": Chessboard(amplitude=24, sources=(0,), target=9, per_source=60, cover=10),
    "B": Cross(amplitude=120, sources=(2,), target=3, per_source=60, cover=10),
    "C": LShape(amplitude=120, sources=(3,), target=5, per_source=60, cover=10),
    "patch-2": BadNets(size=2, target=3, rate=0.1),
    "patch-3": BadNets(size=3, target=3, rate=0.1),
    "patch-3-from-1": BadNets(size=3, sources=(6,), target=3, per_source=60, cover=10),
    "patch-3-from-3": BadNets(size=3, sources=(0, 6, 8), target=3, per_source=24, cover=10),
}
# The paper gives the other data sets one attack each and says that class numbers "follow the official description"
# (A.7.1). Those of GTSRB (whose class 8 is the 120 kph sign, as the paper says), Fashion-MNIST and CIFAR-100 number
# their labels from 0, and are taken at that word. MNIST's does too, but the paper has a class "10" there, so its
# MNIST numbers count from 1, as its CIFAR-10 numbers do.
MNIST = LocalChessboard(amplitude=25, sources=(4, 6, 9), target=8, per_source=500)
FASHION_MNIST = SinglePixel(amplitude=50, sources=(1,), target=3, per_source=900)
GTSRB = LocalSquare(
    amplitude=50, sources=(13, 14, 15, 16, 17, 20, 24, 25, 27, 28, 29, 30), target=8, per_source=30
)
CIFAR100 = Chessboard(amplitude=2, sources=tuple(range(1, 16)), target=21, per_source=50)

GROUPS: dict[str, Groups] = {
    "digits": DIGITS,
    "cifar10": CIFAR10,
    "cifar10-jpeg": CIFAR10,  # a copy of the same images, as a folder
    "mnist": {"paper": MNIST},
    "fashion-mnist": {"paper": FASHION_MNIST},
    "gtsrb": {"paper": GTSRB},
    "gtsrb32": {"paper": GTSRB},  # the same classes, at 32x32
    "cifar100": {"paper": CIFAR100},
}


def group(name: str, dataset: str, *, seed: int = 0) -> SingleAttack | None:
    """The attack of a group on a data set; None for C-0, no attack.

    name: such as "G-3", or "paper" for the single attack of the data sets that have one alone.
    seed: from it each of a group's classifiers draws its own place, channel or phase.
    Raises AttackError for a group that there is not, or not on this data set.
    """
    if name == NO_ATTACK:
        return None
    with_it = [known for known, groups in GROUPS.items() if name in groups]
    if not with_it:
        names = sorted({n for groups in GROUPS.values() for n in groups}, key=[*CIFAR10, "paper"].index)
        raise AttackError(f"no attack group {shown(name)}: allowed are {NO_ATTACK}, {', '.join(names)}")
    if dataset not in with_it:
        there = ", ".join([*GROUPS.get(dataset, {}), NO_ATTACK])
        raise AttackError(
            f"attack group {name} has no settings for data set {shown(dataset)}: it is for {', '.join(with_it)}; "
            f"groups of {shown(dataset)} are {there}"
        )
    attack = GROUPS[dataset][name]
    if isinstance(attack, Global):
        return replace(attack, seed=seed, phase=(seed % 2, seed // 2 % 2))
    if type(attack) is Chessboard:
        return replace(attack, seed=seed, phase=seed % 2)
    return replace(attack, seed=seed)
