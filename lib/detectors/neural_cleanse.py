"""Neural Cleanse (Wang et al. 2019): for each class the smallest mask that sends every image there.

Eqs. 2-3 are solved by the engine of `masks.py`; the cost of the mask is reset for every class. `mode` says which
images must go there: those of all other classes at once (Sec. IV), of one class at a time (Sec. VII-E, partial
backdoors), or of one class found by halving, which the paper names ("divide and conquer") and does not describe.
The norm is |m|_1 of the 2-D mask. `LowCost` is the scheme for many labels (Sec. IV-C).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..settings import choice, number
from .base import Run, of_others
from .descent import Descent
from .masks import Extra, estimate_masks
from .scan import Found, Problems, Scan, assemble

MODES = ("all", "pooled", "pairs", "halving")


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(Descent):
    """Neural Cleanse.

    mode: `all`; `pooled`, the same with batches of exactly `batch` images drawn from all other classes together, as
        the released code draws them; `pairs` (K(K-1) problems, Scan.pair_norms); or `halving` (2 K log2(K-1)
        problems).
    """

    mode: str = choice("all", MODES)

    @property
    def pairs(self) -> bool:
        return self.mode == "pairs"

    def extra(self) -> Extra | None:
        """More loss terms; none here."""
        return None

    def search(self, run: Run) -> Scan:
        k = len(run.clean)
        if self.mode == "halving" and k > 2:
            problems, found = _halving(self, run)
        elif self.mode == "pooled":
            problems, found = _pooled(self, run)
        else:
            problems = Problems.pairs(k) if self.mode == "pairs" else Problems.all_to_one(k)
            found = estimate_masks(run, problems, self, extra=self.extra())
        return assemble(self, problems, found, run.cost)


def _pooled(detector: NeuralCleanse, run: Run) -> tuple[Problems, Found]:
    """For each target all images of the other classes as one source; the q of single classes is not kept."""
    k, device = len(run.clean), run.clean.device
    images, others = of_others(run.clean, run.generator)
    one = Problems(torch.arange(k), torch.arange(k)[:, None])  # to each target its own pool
    found = estimate_masks(replace(run, clean=images[others]), one, detector, extra=detector.extra())
    return Problems.all_to_one(k), replace(
        found, q=None, w=torch.full((k, k - 1), 1 / (k - 1), device=device)
    )


def _halving(detector: NeuralCleanse, run: Run) -> tuple[Problems, Found]:
    """For each target: solve for either half of its sources, and go on with the half whose mask is smaller.

    It ends with one source class for each target; trajectories are left behind. The paper has a name and a cost
    (a factor log K) for this and no description; the reading is ours. A half is judged by the mask that must move
    *all* its classes, so a wrong turn near the root is possible, and is measured in the book.
    """
    k, device = len(run.clean), run.clean.device
    groups = [[s for s in range(k) if s != t] for t in range(k)]
    leaves: dict[int, Found] = {}
    while len(leaves) < k:
        halves: dict[int, list[tuple[int, list[int]]]] = {}
        for t in range(k):
            if t not in leaves:
                middle = (len(groups[t]) + 1) // 2
                for part in (groups[t][:middle], groups[t][middle:]):
                    halves.setdefault(len(part), []).append((t, part))
        tried: dict[int, list[tuple[float, list[int], Found]]] = {}
        for parts in halves.values():  # problems of one size run side by side
            targets, sources = zip(*parts, strict=True)
            problems = Problems(torch.tensor(targets, device=device), torch.tensor(sources, device=device))
            found = estimate_masks(run, problems, detector, extra=detector.extra())
            for i, (t, part) in enumerate(parts):
                tried.setdefault(t, []).append((float(found.norms[i]), part, found.rows(torch.tensor([i]))))
        for t, halves_of_t in tried.items():
            _, groups[t], best = min(halves_of_t, key=lambda x: x[0])
            if len(groups[t]) == 1:
                leaves[t] = best
    problems = Problems(torch.arange(k), torch.tensor([groups[t] for t in range(k)]))
    return problems, Found.joined([leaves[t] for t in range(k)])


@dataclass(frozen=True, kw_only=True)
class LowCost(NeuralCleanse):
    """The scheme for many labels: all side by side until the smallest masks stay the same, then few.

    The early run ends when successive lists of the smallest masks share more than `overlap` labels for `steady`
    rounds. Labels that had no full run have a norm of NaN, which rules leave out. Defaults are the paper's for
    1,283 labels; with `top` at the number of classes or more it is Neural Cleanse, run twice.
    """

    top: int = number(100, least=1)  # candidates, those with the smallest masks, that get the full run
    overlap: int = number(50, least=0)
    steady: int = number(10, least=1)
    others: int = number(100, least=1)  # further labels drawn at random, for the spread that MAD needs

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode != "all":
            raise ValueError(f"mode = {self.mode!r}: the low-cost scheme is for mode 'all'")
        if self.overlap >= self.top:
            raise ValueError(f"overlap = {self.overlap}: from 0 to below top = {self.top} is needed")

    def search(self, run: Run) -> Scan:
        k, device, ranking = len(run.clean), run.clean.device, _Ranking(self)
        problems = Problems.all_to_one(k)
        rough = estimate_masks(run, problems, self, extra=self.extra(), watch=ranking)
        first = torch.tensor(sorted(ranking.best), device=device)
        left = [t for t in range(k) if t not in ranking.best]
        rest = torch.tensor(left, dtype=torch.long, device=device)
        order = torch.randperm(len(rest), generator=run.generator, device=device)
        chosen = torch.cat([first, rest[order[: self.others]]]).sort().values
        few = Problems(chosen, problems.sources.to(device)[chosen])
        found = estimate_masks(run, few, self, extra=self.extra())
        norms, nothing = torch.full_like(rough.norms, float("nan")), torch.zeros_like(rough.converged)
        norms[chosen] = found.norms
        merged = {name: getattr(rough, name).clone() for name in ("mask", "pattern", "success", "q", "w")}
        merged |= {"reached": nothing, "converged": nothing.clone()}
        for name, values in merged.items():
            values[chosen] = getattr(found, name)
        whole = replace(rough, **merged, norms=norms, trajectory={})
        return assemble(self, problems, whole, run.cost)


class _Ranking:
    """Watches the norms and says when the list of the smallest has settled."""

    def __init__(self, how: LowCost) -> None:
        self.how, self.best, self.steady = how, set[int](), 0

    def __call__(self, norms: Tensor) -> bool:
        best = set(norms.argsort()[: self.how.top].tolist())
        self.steady = self.steady + 1 if len(best & self.best) > self.how.overlap else 0
        self.best = best
        return self.steady >= self.how.steady


PRESETS: dict[str, NeuralCleanse] = {
    # The authors' released code on GTSRB: a round is 1000 // 32 batches of 32, any smaller mask is progress. It holds
    # the target's own images too, which ours leaves out.
    "nc-released": NeuralCleanse(
        mode="pooled",
        batch=32,
        lr=0.1,
        round_steps=31,
        max_rounds=1000,
        patience=5,
        stall=25,
        threshold=1.0,
        cost_waits=True,
    ),
    "nc-pairs": NeuralCleanse(mode="pairs"),
    "nc-halving": NeuralCleanse(mode="halving"),
}
