"""L-RED for perceptible triggers: the weighted mask-and-pattern estimation of L-RED's appendix A.3.

For each putative target t it looks for the smallest mask m and pattern u with

    Q_t(u, m, w) = sum_s w_s q_st(u, m) >= pi,    w on the simplex over s != t,

q_st the share of class s that the trigger x (1 - m) + u m sends to t. Uniform weights are Neural Cleanse's
problem (Eq. 14), one-hot weights the pairwise one (Eq. 15). The paper gives neither an algorithm nor an
experiment, so the algorithm is ours. It works in two passes with the engine of `masks.py`:

1. Find the weights. From Neural Cleanse's random start, mask and pattern descend under the weighted loss;
   after every round w follows Eqs. (7)-(8) with T = -log min(Q, pi), so that T stays above -log pi once pi
   is passed, and w is uniform again where Q = 0. A dense mask moves every class; as it shrinks, the classes
   that it loses lose their weight, and those that the trigger carries keep it.
2. Find the mask. With the weights of pass 1 held, the problem is solved afresh from the same start: the mask
   that has found the sources got there by way of the other classes' features, and Adam does not lead it to
   the trigger.

With the schedule "uniform" pass 2 is Neural Cleanse exactly. A start from an empty mask, L-RED's own path,
was tried and dropped: every class then moves at once, or the easiest to confuse with t moves first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .descent import Descent
from .masks import estimate_masks
from .neural_cleanse import assemble
from .pattern_search import Problems
from .scan import Cost, Scan, check_clean, seeded
from .weights import Schedule, Update, annealed, schedule


@dataclass(frozen=True, kw_only=True)
class MaskedLRED(Descent):
    """Perceptible L-RED; pi is L-RED's 0.9, not Neural Cleanse's 0.99.

    schedule: see `weights.schedule`, asked with min(Q, pi). one_pass: keep the masks of pass 1.
    """

    pi: float = 0.9
    schedule: str | float | Schedule = "paper"
    one_pass: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pi == 1:
            raise ValueError("pi = 1: a share below 1 is needed, so that the temperature stays above 0")
        schedule(self.schedule)

    def scan(
        self,
        model: nn.Module,
        clean: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Scan:
        """Scan a model, images -> logits (N, K), with clean images (K, n, C, H, W).

        Scan.weights has pass 1's weights: the row of an infected label should point at the sources. The
        trajectory is pass 1's, by round. generator draws the start and the batches; without one they are
        those of seed 0.
        """
        check_clean(clean)
        generator, cost, k = seeded(generator, clean.device), Cost(), len(clean)
        problems = Problems.all_to_one(k)
        state = generator.get_state()
        shared: dict[str, Any] = {"generator": generator, "cost": cost, "progress": progress}
        found = estimate_masks(model, clean, problems, self, update=self._update(), **shared)
        if not self.one_pass:
            generator.set_state(state)
            again = estimate_masks(model, clean, problems, self, weights=found.w, **shared)
            found = replace(again, trajectory=found.trajectory)
        return assemble(self, k, problems, found, cost)

    def _update(self) -> Update:
        temperatures = schedule(self.schedule)
        return annealed(lambda success, step: temperatures(success.clamp_max(self.pi), step))
