"""Neural Cleanse (Wang et al. 2019): for each class the smallest mask that sends every image there.

Eqs. 2-3 are solved by the engine of `masks.py`; the cost of the mask is reset for every class. `mode` says
which images must go there: those of all other classes at once (Sec. IV), of one class at a time (Sec. VII-E,
partial backdoors), or of one class found by halving, which the paper names ("divide and conquer") and does
not describe. The norm is |m|_1 of the 2-D mask. `LowCost` is the scheme for many labels (Sec. IV-C).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from .. import anomaly
from .descent import Descent
from .masks import Extra, Masks, estimate_masks
from .pattern_search import Problems
from .scan import Cost, Scan, at_least, check_clean, seeded

MODES = ("all", "pairs", "halving")
MASK_NORM = "L1 norm of the mask"


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(Descent):
    """Neural Cleanse. mode: `all`, `pairs` (K(K-1) problems, Scan.pair_norms), `halving` (2 K log2(K-1))."""

    mode: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode = {self.mode!r}: allowed are {', '.join(MODES)}")

    def extra(self) -> Extra | None:
        """More loss terms; none here."""
        return None

    def scan(
        self,
        model: nn.Module,
        clean: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Scan:
        """Scan a model, images -> logits (N, K), with clean images (K, n, C, H, W).

        generator draws the start and the batches; without one they are those of seed 0.
        """
        check_clean(clean)
        generator, cost, k = seeded(generator, clean.device), Cost(), len(clean)
        solve = Solver(model, clean, self, self.extra(), generator, cost, progress)
        if self.mode == "halving":
            return _halving(self, solve)
        problems = Problems.pairs(k) if self.mode == "pairs" else Problems.all_to_one(k)
        return assemble(self, k, problems, solve(problems), cost)


@dataclass(frozen=True)
class Solver:
    """`estimate_masks` with all but the problems settled."""

    model: nn.Module
    clean: Tensor
    how: Descent
    extra: Extra | None
    generator: torch.Generator
    cost: Cost
    progress: bool = False

    def __call__(self, problems: Problems, watch: Callable[[Tensor], bool] | None = None) -> Masks:
        return estimate_masks(
            self.model, self.clean, problems, self.how,
            extra=self.extra, generator=self.generator, watch=watch, cost=self.cost, progress=self.progress,
        )  # fmt: skip


def assemble(detector: Descent, k: int, problems: Problems, found: Masks, cost: Cost) -> Scan:
    """Per-class results: for pairs, the smallest norm over the sources of each target."""
    rows, pair_norms, weights = torch.arange(k), None, torch.zeros(k, k)
    target, sources, norms = problems.target.cpu(), problems.sources.cpu(), found.norms.cpu()
    best = rows
    if sources.shape[1] == 1 and k > 2:
        best = torch.stack([torch.where(target == t, norms, torch.inf).argmin() for t in range(k)])
        if len(target) > k:
            pair_norms = torch.full((k, k), float("nan"))
            pair_norms[sources[:, 0], target] = norms
    weights[rows[:, None], sources[best]] = found.w[best].cpu()
    settings = {
        key: v if isinstance(v, (int, float, str)) else repr(v) for key, v in asdict(detector).items()
    }
    return Scan(
        detector=type(detector).__name__,
        settings=settings,
        norms=norms[best],
        norm_name=MASK_NORM,
        pattern=found.pattern[best].cpu(),
        mask=found.mask[best].cpu(),
        success=found.success[best].cpu(),
        converged=found.converged[best].cpu(),
        weights=weights,
        pair_norms=pair_norms,
        trajectory=found.trajectory,
        cost=cost,
    )


def _halving(detector: NeuralCleanse, solve: Solver) -> Scan:
    """For each target: solve for either half of its sources,
    go on with the half whose mask is smaller, down to one class.

    The paper has a name and a cost (a factor log K) for this and no description; the reading is ours. A half
    is judged by the mask that must move *all* its classes, so a wrong turn near the root is possible, and is
    measured in the book.
    """
    k, device = len(solve.clean), solve.clean.device
    groups = [[s for s in range(k) if s != t] for t in range(k)]
    leaves: dict[int, tuple[Problems, Masks, int]] = {}
    if k == 2:
        problems = Problems.all_to_one(k)
        return assemble(detector, k, problems, solve(problems), solve.cost)
    while len(leaves) < k:
        halves: dict[int, list[tuple[int, list[int]]]] = {}
        for t in range(k):
            if t not in leaves:
                middle = (len(groups[t]) + 1) // 2
                for part in (groups[t][:middle], groups[t][middle:]):
                    halves.setdefault(len(part), []).append((t, part))
        norms: dict[int, list[tuple[float, list[int], Problems, Masks, int]]] = {}
        for parts in halves.values():  # problems of one size run side by side
            targets, sources = zip(*parts, strict=True)
            problems = Problems(torch.tensor(targets, device=device), torch.tensor(sources, device=device))
            found = solve(problems)
            for i, (t, part) in enumerate(parts):
                norms.setdefault(t, []).append((float(found.norms[i]), part, problems, found, i))
        for t, tried in norms.items():
            _, groups[t], problems, found, i = min(tried, key=lambda x: x[0])
            if len(groups[t]) == 1:
                leaves[t] = problems, found, i
    return assemble(detector, k, *_gather(leaves, k), solve.cost)


def _gather(leaves: dict[int, tuple[Problems, Masks, int]], k: int) -> tuple[Problems, Masks]:
    """One problem per class out of several runs; trajectories are left behind."""
    rows = [leaves[t] for t in range(k)]
    problems = Problems(torch.arange(k), torch.stack([p.sources[i].cpu() for p, _, i in rows]))
    names = ("mask", "pattern", "norms", "success", "q", "w", "converged", "rounds")
    tensors = {name: torch.stack([getattr(m, name)[i] for _, m, i in rows]) for name in names}
    return problems, Masks(**tensors, trajectory={})


@dataclass(frozen=True, kw_only=True)
class LowCost:
    """The scheme for many labels (Sec. IV-C):
    all side by side until the smallest masks stay the same, then few.

    top: candidates, those with the smallest masks, that get the full run. The early run ends when successive
    top lists share more than `overlap` labels for `steady` rounds. others: further labels drawn at random,
    for the spread that MAD needs. Defaults are the paper's for 1,283 labels.
    """

    detector: NeuralCleanse = NeuralCleanse()
    top: int = 100
    overlap: int = 50
    steady: int = 10
    others: int = 100

    def __post_init__(self) -> None:
        if self.detector.mode != "all":
            raise ValueError(f"mode = {self.detector.mode!r}: the low-cost scheme is for mode 'all'")
        at_least(self, top=1, steady=1, others=1)
        if not 0 <= self.overlap < self.top:
            raise ValueError(f"overlap = {self.overlap}: from 0 to below top = {self.top} is needed")

    def scan(
        self,
        model: nn.Module,
        clean: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Scan:
        """As `NeuralCleanse.scan`; norms are NaN for the labels that had no full run.
        `judge` leaves those out.
        """
        check_clean(clean)
        generator, cost, k = seeded(generator, clean.device), Cost(), len(clean)
        ranking = _Ranking(self)
        early = Solver(model, clean, self.detector, self.detector.extra(), generator, cost, progress)
        problems = Problems.all_to_one(k)
        rough = early(problems, watch=ranking)
        first = torch.tensor(sorted(ranking.best), device=clean.device)
        rest = torch.tensor(
            [t for t in range(k) if t not in ranking.best], dtype=torch.long, device=clean.device
        )
        drawn = rest[torch.randperm(len(rest), generator=generator, device=clean.device)[: self.others]]
        chosen = torch.cat([first, drawn]).sort().values
        found = early(Problems(chosen, problems.sources.to(clean.device)[chosen]))
        for name in ("mask", "pattern", "success", "converged", "w"):
            getattr(rough, name)[chosen] = getattr(found, name)
        norms = torch.full_like(rough.norms, float("nan"))
        norms[chosen] = found.norms
        rough.converged[torch.isnan(norms)] = False
        scan = assemble(self.detector, k, problems, replace(rough, norms=norms, trajectory={}), cost)
        return replace(scan, detector=type(self).__name__)


class _Ranking:
    """Watches the norms and says when the list of the smallest has settled."""

    def __init__(self, how: LowCost) -> None:
        self.how, self.best, self.run = how, set[int](), 0

    def __call__(self, norms: Tensor) -> bool:
        best = set(norms.argsort()[: self.how.top].tolist())
        self.run = self.run + 1 if len(best & self.best) > self.how.overlap else 0
        self.best = best
        return self.run >= self.how.steady


def judge(scan: Scan, rule: str = "mad") -> anomaly.Verdict:
    """A rule on the classes whose norm was estimated:
    medians and nulls are theirs, targets are numbered among all K.
    """
    known = torch.nonzero(~torch.isnan(scan.norms)).flatten()
    verdict = anomaly.judge(scan.norms[known], rule)
    targets = tuple(int(known[t]) for t in verdict.targets)
    return replace(verdict, targets=targets, suspect=int(known[verdict.suspect]))


PRESETS: dict[str, NeuralCleanse] = {
    # The authors' released code on GTSRB: a round is 1000 // 32 batches of 32.
    "nc-released": NeuralCleanse(
        batch=32, round_steps=31, max_rounds=1000, patience=5, stall=25, cost_waits=True
    ),
    "nc-pairs": NeuralCleanse(mode="pairs"),
    "nc-halving": NeuralCleanse(mode="halving"),
}
