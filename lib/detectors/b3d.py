"""B3D: reverse-engineering a replacement trigger by queries alone (Dong et al. 2021, Sec. 3, Algorithm 1).

For each putative target c the expected loss E[F(m, p; c)] over a search distribution is lowered: m ~
Bern(g(theta_m)) for each pixel, p = g(p'), p' ~ N(theta_p, sigma^2), g(x) = (tanh(x) + 1) / 2, F the mean
cross-entropy of a minibatch plus lambda |m| (Eqs. 2-6). The model is a callable that gives probabilities; no
gradient is ever asked for. The descent itself (Adam, the rule for lambda, which mask is kept, when a class is
retired) is that of `descent.py`, fed with estimates.

What the paper leaves open, and our choice: the mask is (H, W), shared by the channels; a minibatch holds
images of the other classes alone, the same for all 2k samples of an iteration; its loss is the mean, with
probabilities floored at 1e-12; all classes share an iteration's random numbers; the mask starts at `start`
everywhere and the pattern at grey; lambda follows a rule like Neural Cleanse's on the share of an iteration's own
queries that reach the target, with numbers of ours: from 0.03, by 1.5 up and 1.5^1.5 down, after two rounds in a row
(released Neural Cleanse: from 0.001, by 2 and 2^1.5, after five). A class is done when its mask has not shrunk by
1 % for `stall` rounds and lambda has been both up and down. Two departures lower the variance and can be switched
off: a leave-one-out baseline, and the penalty's gradient 2 lambda g (1 - g) in closed form. Neither changes what the
estimates are on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..models import Queries, black_box
from ..models.ask import BATCH
from ..settings import allowed, choice, number
from .base import Needs, Recorder, Run
from .descent import BETAS, Descent, State, unit
from .scan import Found, Problems, Scan, assemble

FLOOR = 1e-12  # of a probability inside the logarithm


def centred(losses: Tensor, baseline: bool) -> Tensor:
    """Losses (..., k), k >= 2, each less the mean of the others: the estimate keeps its mean, loses variance."""
    k = losses.shape[-1]
    return (losses - losses.mean(-1, keepdim=True)) * k / (k - 1) if baseline else losses


def mask_gradient(losses: Tensor, masks: Tensor, mean: Tensor, *, baseline: bool = True) -> Tensor:
    """Eq. (5) in theta_m: losses (B, k), masks (B, k, H, W) from Bern(mean), mean (B, H, W) -> (B, H, W)."""
    # Centred losses sum to 0, so any centre of the masks gives the same sum; about their own mean a pixel that
    # no sample tells apart has a gradient of exactly 0, where rounding would leave a sign for Adam to follow.
    around = masks.mean(1, keepdim=True) if baseline else mean[:, None]
    return 2 * torch.einsum("bk,bkhw->bhw", centred(losses, baseline), masks - around) / losses.shape[1]


def pattern_gradient(losses: Tensor, noise: Tensor, sigma: float, *, baseline: bool = True) -> Tensor:
    """Eq. (6), in theta_p: losses (B, k) at theta_p + sigma noise, noise (B, k, C, H, W) -> (B, C, H, W)."""
    return torch.einsum("bk,bkchw->bchw", centred(losses, baseline), noise) / (losses.shape[1] * sigma)


def target_loss(ask: Callable[[Tensor], Tensor], stamped: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy towards the target over a minibatch, and the share of it that arrives, by queries.

    stamped (A, k, X, C, H, W), target (A,) -> both (A, k).
    """
    p = ask(stamped.flatten(0, 2)).view(*stamped.shape[:3], -1)
    toward = p.gather(3, target[:, None, None, None].expand(*p.shape[:3], 1))[..., 0]
    arrived = (p.argmax(3) == target[:, None, None]).float().mean(2)
    return -toward.clamp_min(FLOOR).log().mean(2), arrived


@dataclass(frozen=True, kw_only=True)
class B3D(Descent):
    """B3D with a query budget for the whole scan, which is never exceeded.

    Classes that the budget cuts short are not converged, and may have been reached. The trajectory has, by round:
    norm, Q (share of the round's queries that arrive), cost (lambda), best (smallest kept norm so far), queries
    (asked so far, in all), and every `record_every`-th mask.
    mask: "soft" gives g(theta_m), as in the paper's comparisons, "discrete" 1[g(theta_m) >= 0.5].
    """

    budget: int | None = number(10_000_000, least=1)  # None: no limit
    samples: int = number(20, least=2)  # k; the paper takes 50 and finds 20 to 100 alike
    sigma: float = number(0.1, above=0)
    lr: float = number(0.1, above=0)  # the paper: 0.05
    betas: tuple[float, float] = allowed((0.9, 0.999), BETAS)
    batch: int = number(9, least=1)  # images per minibatch
    round_steps: int = number(4, least=1)
    max_rounds: int = number(1000, least=1)
    cost_start: float = number(0.03, least=0)
    cost_waits: bool = True
    cost_up: float = number(1.5, least=1)
    cost_down: float = number(1.5**1.5, least=1)
    patience: int = number(2, least=0)
    stall: int = number(25, least=1)
    start: float = number(0.1, above=0, below=1)  # expected share of the pixels that the first masks cover
    baseline: bool = True
    exact_penalty: bool = True
    mask: str = choice("soft", ("soft", "discrete"))
    check: int = number(200, least=1)  # images per class, within the budget, to try the final trigger on
    query_batch: int = number(BATCH, least=1)  # images per call of the model

    needs = Needs(access="answers")

    def search(self, run: Run) -> Scan:
        """A network is asked for the softmax of its logits, a callable for its probabilities.

        Raises ValueError, before asking anything, when the budget does not cover one round of all classes;
        `QueryBudgetError` cannot happen.
        """
        k, ask = len(run.clean), self.queries(run)
        if ask.left < (least := self.least_queries(k, run.clean.shape[1])):
            raise ValueError(
                f"budget = {self.budget}: one round of {k} classes and the final check need {least}"
            )
        with run.cost.clock():
            return self.descend(ask, run, run.clean)

    def queries(self, run: Run) -> Queries:
        """The model behind a counter with this budget; its ledger is the run's."""
        ask, k = black_box(run.model), len(run.clean)
        return Queries(ask, k, budget=self.budget, batch_size=self.query_batch, cost=run.cost)

    def least_queries(self, k: int, n: int) -> int:
        """Queries of one round of k classes, with n images each, and of the final check."""
        return k * (self.round_steps * self._each(k, n) + _count(self.check, k - 1, n))

    def _each(self, k: int, n: int) -> int:
        return 2 * self.samples * _count(self.batch, k - 1, n)

    def descend(self, ask: Queries, run: Run, clean: Tensor) -> Scan:
        """Algorithm 1 for all classes side by side, on these images, with what is left of the queries."""
        k, n, _, *size = clean.shape
        device, generator, problems = clean.device, run.generator, Problems.all_to_one(k).to(clean.device)
        start = torch.full(size, self.start, device=device), torch.full(clean.shape[2:], 0.5, device=device)
        state, recorder = State(self, start, k, k - 1, device), Recorder(self.record_every, k)
        reserve, each = k * _count(self.check, k - 1, n), self._each(k, n)
        with tqdm(total=k, desc="classes", disable=not run.progress, leave=False) as bar:
            for turn in range(self.max_rounds):
                index, cost = state.index, state.cost
                if not len(index) or run.stopped or ask.left < self.round_steps * each * len(index) + reserve:
                    break
                success = torch.zeros(len(index), device=device)
                for _ in range(self.round_steps):
                    images = _minibatch(clean, problems.sources[index], self.batch, generator)
                    arrived = self._step(ask, state, images, problems.target[index], generator)
                    success += arrived / self.round_steps
                mask, spent = state.look(success), torch.full_like(success, ask.cost.queries)
                norm, best = mask.sum((1, 2)), state.smallest
                recorder.keep(turn, index, norm=norm, Q=success, cost=cost, best=best, queries=spent, v=mask)
                bar.update(state.retire(turn + 1, last=False))
                bar.set_postfix(queries=f"{ask.cost.queries:,}")
        images = _minibatch(clean, problems.sources, self.check, generator)
        return self._result(ask, images, problems, state, recorder)

    def _step(
        self, ask: Queries, state: State, images: Tensor, target: Tensor, generator: torch.Generator
    ) -> Tensor:
        """One iteration on minibatches (A, X, C, H, W): both estimates, one Adam step; shares (A,) that arrived."""
        mean, pattern = (part.detach() for part in state.parameters())
        theta_m, theta_p = state.theta
        # one draw serves all classes
        draw: dict[str, Any] = {"generator": generator, "device": images.device}
        masks = (torch.rand(self.samples, *mean.shape[1:], **draw) < mean[:, None]).to(mean)
        noise = torch.randn(self.samples, *pattern.shape[1:], **draw).expand(len(images), *[-1] * 4)
        moved = unit(theta_p.detach()[:, None] + self.sigma * noise)
        by_masks, by_patterns = _stamp(images, masks, pattern[:, None]), _stamp(images, mean[:, None], moved)
        stamped = torch.cat([by_masks, by_patterns], 1)
        losses, arrived = target_loss(ask, stamped, target)
        on_mask, on_pattern = losses.split(self.samples, 1)
        cost = state.cost[:, None]
        if not self.exact_penalty:
            on_mask = on_mask + cost * masks.sum((2, 3))
            on_pattern = on_pattern + cost * mean.sum((1, 2))[:, None]
        by_mask = mask_gradient(on_mask, masks, mean, baseline=self.baseline)
        if self.exact_penalty:
            by_mask = by_mask + 2 * cost[:, :, None] * mean * (1 - mean)
        by_pattern = pattern_gradient(on_pattern, noise, self.sigma, baseline=self.baseline)
        # the loss that has these gradients
        state.step((by_mask * theta_m).sum() + (by_pattern * theta_p).sum())
        return arrived.mean(1)

    def _result(
        self, ask: Queries, images: Tensor, problems: Problems, state: State, recorder: Recorder
    ) -> Scan:
        """The kept triggers, soft or discrete, tried on `images` (K, X, C, H, W)."""
        mask = state.mask if self.mask == "soft" else harden(state.mask)
        _, arrived = target_loss(ask, _stamp(images, mask[:, None], state.pattern[:, None]), problems.target)
        arrived = arrived[:, 0]
        found = Found(
            norms=mask.sum((1, 2)),
            mask=mask,
            pattern=state.pattern,
            success=arrived,
            # a discrete mask is another than the soft one that the search has tried
            reached=state.reached & ((arrived >= self.pi - 1e-6) | (self.mask == "soft")),
            converged=state.converged,
            trajectory=recorder.tensors(trigger="mask"),
        )
        return assemble(self, problems, found, ask.cost)


PRESETS: dict[str, B3D] = {
    "b3d-paper": B3D(budget=None, samples=50, lr=0.05, start=0.5, baseline=False, exact_penalty=False),
}


def harden(mask: Tensor) -> Tensor:
    """The discrete mask 1[m >= 0.5] of soft masks (B, H, W); where that is empty, its largest entry alone."""
    hard = (mask >= 0.5).to(mask)
    largest = (mask == mask.amax((1, 2), keepdim=True)).to(mask)
    return torch.where(hard.sum((1, 2), keepdim=True) > 0, hard, largest)


def norms_at(scan: Scan, queries: float) -> Tensor:
    """Norms (K,) that a recorded scan held after so many queries: what a smaller budget would have found.

    Soft masks; a class without a successful mask by then has the norm of its current one. Raises ValueError
    for a scan that was not recorded, or for fewer queries than its first round took.
    """
    path = scan.trajectory
    if "queries" not in path:
        raise ValueError("the scan has no trajectory: scan with record_every = 1 or more")
    known = path["queries"] <= queries  # False where NaN: retired
    if not known[0].all():
        raise ValueError(f"queries = {queries:g}: the first round took {float(path['queries'][0, 0]):g}")
    held = torch.where(path["best"].isinf(), path["norm"], path["best"])
    return held.gather(0, known.sum(0, keepdim=True) - 1)[0]


def _stamp(images: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """Every image under every trigger, (A, k, X, C, H, W).

    images (A, X, C, H, W); masks (A, k, H, W) and patterns (A, k, C, H, W), either with 1 in place of k.
    """
    m = masks[:, :, None, None]
    return images[:, None] * (1 - m) + patterns[:, :, None] * m


def _count(size: int, sources: int, n: int) -> int:
    """How many images `_minibatch` gives when about `size` are wanted."""
    return sources * min(n, -(-size // sources)) if size >= sources else size


def _minibatch(clean: Tensor, sources: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Clean images for each row of sources (A, S), about `size` of them: (A, X, C, H, W).

    The same positions of every source class, so that numbering the classes otherwise changes nothing; when
    `size` is less than S, one image each of some of them.
    """
    s, n, device = sources.shape[1], clean.shape[1], clean.device
    positions = torch.randperm(n, generator=generator, device=device)[: max(1, _count(size, s, n) // s)]
    if size < s:
        sources = sources[:, torch.randperm(s, generator=generator, device=device)[:size]]
    return clean[sources[:, :, None], positions].flatten(1, 2)
