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

from ..settings import number
from .base import Run
from .descent import Descent
from .lred_annealing import Schedule, Update, annealed, schedule
from .masks import estimate_masks
from .scan import Problems, Scan, assemble


@dataclass(frozen=True, kw_only=True)
class MaskedLRED(Descent):
    """Perceptible L-RED; pi is L-RED's 0.9, not Neural Cleanse's 0.99, and below 1 so that T stays above 0.

    schedule: see `lred_annealing.schedule`, asked with min(Q, pi).
    """

    pi: float = number(0.9, above=0, below=1)
    schedule: str | float | Schedule = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule(self.schedule)

    def search(self, run: Run) -> Scan:
        """Both passes. Scan.weights has the weights that pass 1 found: a row should point at the sources.

        The trajectory is pass 1's, by round.
        """
        problems, state = Problems.all_to_one(len(run.clean)), run.generator.get_state()
        sought = estimate_masks(run, problems, self, update=self._update())
        run.generator.set_state(state)  # the same start and the same batches
        found = estimate_masks(run, problems, self, weights=sought.w)
        found = replace(found, trajectory=sought.trajectory)
        return assemble(self, problems, found, run.cost)

    def _update(self) -> Update:
        temperatures = schedule(self.schedule)
        return annealed(lambda success, step: temperatures(success.clamp_max(self.pi), step))
