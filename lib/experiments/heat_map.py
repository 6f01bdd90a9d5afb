"""Where a patch works: ASR with it moved over the whole image (B3D Figs. 5 and 8)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..attacks import AttackError, BadNets
from ..classifier import Classifier


@torch.no_grad()
def heat_map(classifier: Classifier, attack: BadNets, *, stride: int = 1, most: int | None = None) -> Tensor:
    """ASR at every place: (rows, columns) of top-left corners, `stride` apart.

    attack: its patch is moved, and does not change otherwise.
    most: test images to look at, default all; those of the target class are left out.
    Raises AttackError for a patch that cannot be moved.
    """
    images, labels = classifier.dataset.test
    x = images[:most][labels[:most] != attack.target]
    height, width = x.shape[-2:]
    size = attack.size or 0
    if not 0 < size <= min(height, width) or stride < 1:
        have = f"size = {attack.size}, stride = {stride}"
        raise AttackError(f"{have}: a patch that can be moved, and a step from 1, are needed")
    rows, columns = range(0, height - size + 1, stride), range(0, width - size + 1, stride)

    def rate(at: tuple[int, int]) -> Tensor:
        # replace() draws the colours again from the same seed, and forgets only what was learnt: put it back
        moved = replace(attack, at=at, per_image=False).with_learnt(attack.learnt)
        return (classifier.predict(moved.embed(x)) == attack.target).float().mean()

    return torch.tensor([[rate((i, j)) for j in columns] for i in rows])
