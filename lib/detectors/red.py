"""The RED family for additive patterns: P-RED, U-RED, L-RED (Xiang et al. 2021) and the surrogate of Eq. (12).

A problem is a putative target, S putative source classes, and a pattern v; it is retired as soon as its weighted
share of misclassified images reaches pi. U-RED and L-RED pose K problems of K - 1 sources each, P-RED K(K - 1)
problems of one; Algorithm 1 of L-RED solves them all side by side. One forward and one backward pass make a step:
the shares q at the new v come from the same pass as the log-posteriors whose weighted gradient, with the new
weights, is the next step. How the weights follow is in `lred_annealing.py`. Nothing here is random.

Choices the papers leave open: full batches; exact gradient through the clip; no projection and no quantisation of
v; a problem whose gradient vanishes, or that reaches max_steps, keeps its last v and is marked as not converged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import log_posterior
from ..settings import Allowed, allowed, are_numbers, number
from .base import Detector, Recorder, Run, clip
from .lred_annealing import Schedule, Update, annealed, frozen_weights, schedule, surrogate
from .parts import in_parts
from .scan import L2_OF_PATTERN, Found, Problems, Scan, assemble

COARSE_UNTIL = 0.3  # below this Q the weights stay nearly uniform (exp(1/T) = 2.3); above it the path decides
# The first look, for the size of a rough pattern:
FEW = 2  # images of each class
FIRST = 0.002  # length of its first step, as a share of the images' mean norm
GROWTH = 0.5  # of the later ones, as a share of the pattern's
LOOK = 100  # steps, at most
STRIDE = Allowed(
    lambda value: are_numbers(value, 2, above=0, most=1) and value[1] <= value[0],
    "a pair (coarse, fine) of numbers above 0, at most 1, the first not below the second,",
)


@dataclass(frozen=True, kw_only=True)
class Ascent(Detector):
    """Settings of the search.

    delta: the paper's fixed step length in pixel units (its value: 1e-4 at norms near 0.2). None: each problem has steps
        in proportion to its pattern, see `stride`.
    stride: lengths (coarse, fine) as shares of the norm at which a first rough pattern sends Q = 0.3 of few images
        there; used without delta. Steps are coarse while Q < 0.3, where the weights hardly move, and fine from there
        to pi, where they concentrate "late and fast".
    record_every: record the patterns at every so many steps, all else at every step; 0 records nothing.
    """

    pi: float = number(0.9, above=0, below=1)  # weighted share of the images that must arrive
    delta: float | None = number(None, above=0)
    stride: tuple[float, float] = allowed((0.1, 0.02), STRIDE)
    max_steps: int = number(10_000, least=1)
    record_every: int = number(0, least=0)

    norm_name = L2_OF_PATTERN

    def __post_init__(self) -> None:
        super().__post_init__()
        stride = self.stride if self.delta is None else Ascent.stride  # one search, one name
        object.__setattr__(self, "stride", tuple(map(float, stride)))


def estimate_patterns(run: Run, problems: Problems, how: Ascent, *, update: Update) -> Found:
    """Algorithm 1 for all problems; norms are ||v||_2.

    A problem takes coarse steps until one lands at Q >= COARSE_UNTIL; that step is shortened to a fine one, and
    fine ones follow. With `delta` it is Algorithm 1 to the letter: every step has that length.
    update: new weights from (w, q, mean log-posteriors, step), as in `lred_annealing.py`.
    Raises ValueError if the model gives anything but (N, K) finite logits.
    """
    problems = problems.to(run.clean.device)
    b, s = problems.sources.shape

    def solve(part: Run, rows: Tensor, tell: Callable[[int], object]) -> Found:
        return _ascend(part, problems.target[rows], problems.sources[rows], how, update, tell)

    return in_parts(run, b, s * run.clean.shape[1], solve)


def _ascend(
    run: Run, target: Tensor, sources: Tensor, how: Ascent, update: Update, tell: Callable[[int], object]
) -> Found:
    clean, cost = run.clean, run.cost
    device, (k, n, *shape) = clean.device, clean.shape
    b, s = sources.shape
    v, direction = torch.zeros(2, b, *shape, device=device)
    w, q = torch.full((b, s), 1 / s, device=device), torch.zeros(b, s, device=device)
    success, steps = torch.zeros(b, device=device), torch.zeros(b, dtype=torch.long, device=device)
    converged, careful = torch.zeros(2, b, dtype=torch.bool, device=device)
    recorder, active = Recorder(how.record_every, b), torch.arange(b, device=device)
    images = clean[sources]  # (B, S, n, C, H, W), made anew when a problem retires
    coarse, fine = _lengths(run, target, sources, how)
    careful |= coarse == fine
    for i in range(how.max_steps + 1):
        if not len(active) or run.stopped:
            break
        here = v[active].requires_grad_(True)
        log_p = _posteriors(run.model, images, here, k)
        cost.forward += len(active) * s * n
        toward = log_p.gather(3, target[active][:, None, None, None].expand(-1, s, n, 1))[..., 0]
        q[active] = shares = (log_p.argmax(3) == target[active][:, None, None]).float().mean(2)
        w_old = w[active]
        success[active] = (w_old * shares).sum(1)  # Q with the old weights
        temperature = torch.full_like(success[active], torch.inf)
        too_far = ~careful[active] & (success[active] >= COARSE_UNTIL) & (i > 0)
        done = (success[active] >= how.pi - 1e-6) & ~too_far & (i > 0)
        if i:
            w_new, temperature = update(w_old, shares, toward.detach().mean(2), i)
            w[active] = torch.where((done | too_far)[:, None], w_old, w_new)
        norm = here.detach().flatten(1).norm(dim=1)
        known = {"Q": success[active], "T": temperature, "w": w[active], "q": shares}
        recorder.keep(i, active, **known, norm=norm, v=here)
        steps[active], converged[active] = i, done
        if i == how.max_steps:
            break
        unit, flat = _unit_gradient((w[active] * toward.mean(2)).sum(), here)
        cost.backward += len(active) * s * n
        length = torch.where(careful[active], fine[active], coarse[active])
        unit = torch.where(_wide(too_far), direction[active], unit)
        length = torch.where(too_far, fine[active] - coarse[active], length)
        retired = done | (flat & ~too_far)
        v[active] = here.detach() + torch.where(_wide(retired), 0, _wide(length) * unit)
        direction[active], careful[active] = unit, careful[active] | too_far
        if retired.any():
            active = active[~retired]
            images = clean[sources[active]]
            tell(int(retired.sum()))
    return Found(
        norms=v.flatten(1).norm(dim=1),
        pattern=v,
        success=success,
        reached=(success >= how.pi - 1e-6) & (steps > 0),
        converged=converged,
        q=q,
        w=w,
        steps=steps,
        trajectory=recorder.tensors(),
    )


def _lengths(run: Run, target: Tensor, sources: Tensor, how: Ascent) -> tuple[Tensor, Tensor]:
    """Coarse and fine step lengths (B,) of problems with these targets (B,) and sources (B, S)."""
    if how.delta is None:
        size = _rough_norms(run, target, sources, min(LOOK, how.max_steps))
        return how.stride[0] * size, how.stride[1] * size
    fixed = torch.full(target.shape, how.delta, device=target.device)
    return fixed, fixed


def _rough_norms(run: Run, target: Tensor, sources: Tensor, most: int) -> Tensor:
    """Norms (B,) of rough patterns that send COARSE_UNTIL of a FEW images of each source class there.

    Of those that were not there without any. Each step is half as long as the pattern is by then, so that some ten lead
    from any beginning to any size. A problem whose gradient vanishes, or that takes `most` steps, has the norm that it has
    reached.
    """
    clean, (k, _, *shape) = run.clean[:, :FEW], run.clean.shape
    (b, s), n = sources.shape, clean.shape[1]
    first = FIRST * float(clean.flatten(2).norm(dim=2).mean()) or FIRST  # of black images too
    v, active = torch.zeros(b, *shape, device=clean.device), torch.arange(b, device=clean.device)
    without = torch.zeros(b, device=clean.device)
    for i in range(most):
        if not len(active) or run.stopped:
            break
        here, goal = v[active].requires_grad_(True), target[active]
        log_p = _posteriors(run.model, clean[sources[active]], here, k)
        toward = log_p.gather(3, goal[:, None, None, None].expand(-1, s, n, 1))[..., 0]
        share = (log_p.argmax(3) == goal[:, None, None]).float().mean((1, 2))
        unit, flat = _unit_gradient(toward.mean((1, 2)).sum(), here)
        run.cost.forward += len(active) * s * n
        run.cost.backward += len(active) * s * n
        if i == 0:
            without = share
        gained = (share - without[active]) / (1 - without[active]).clamp_min(1e-6)
        there = flat | (gained >= COARSE_UNTIL)
        length = (GROWTH * here.detach().flatten(1).norm(dim=1)).clamp_min(first)
        v[active] = here.detach() + torch.where(_wide(there), 0, _wide(length) * unit)
        active = active[~there]
    return v.flatten(1).norm(dim=1).clamp_min(first)


def _wide(x: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to meet patterns."""
    return x[:, None, None, None]


def _posteriors(model: nn.Module, images: Tensor, v: Tensor, k: int) -> Tensor:
    """Log-posteriors (B, S, n, K) of images (B, S, n, C, H, W) with their problem's v (B, C, H, W) on them."""
    shifted = clip(images + v[:, None, None]).flatten(0, 2)
    return log_posterior(model, shifted, k).view(*images.shape[:3], -1)


def _unit_gradient(value: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (B, C, H, W) scaled to norm 1, and which of them vanish (B,)."""
    (gradient,) = torch.autograd.grad(value, at)
    size = gradient.flatten(1).norm(dim=1)
    return gradient / _wide(size.clamp_min(torch.finfo(size.dtype).tiny)), size == 0


@dataclass(frozen=True, kw_only=True)
class _RED(Ascent):
    """What the four share: all classes to each target, weights that never move."""

    def _update(self) -> Update:
        return frozen_weights()

    def _problems(self, k: int) -> Problems:
        return Problems.all_to_one(k)

    def search(self, run: Run) -> Scan:
        problems = self._problems(len(run.clean))
        found = estimate_patterns(run, problems, self, update=self._update())
        return assemble(self, problems, found, run.cost)


@dataclass(frozen=True, kw_only=True)
class PRED(_RED):
    """P-RED: one problem per class pair (Eq. 2). Scan.pair_norms has all K(K-1) norms."""

    @property
    def pairs(self) -> bool:
        return True

    def _problems(self, k: int) -> Problems:
        return Problems.pairs(k)


@dataclass(frozen=True, kw_only=True)
class URED(_RED):
    """U-RED: every other class is a source with the same weight 1/(K-1)."""


@dataclass(frozen=True, kw_only=True)
class LRED(_RED):
    """L-RED: weights annealed by T = -log Q (Eqs. 3-8).

    With two clean images per class it is the paper's L-RED'.
    schedule: another temperature schedule, see `lred_annealing.schedule`.
    """

    schedule: str | float | Schedule = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule(self.schedule)

    def _update(self) -> Update:
        return annealed(schedule(self.schedule))


@dataclass(frozen=True, kw_only=True)
class SurrogateRED(_RED):
    """The surrogate that the paper tried and dropped (Eq. 12).

    Joint gradient ascent on J in v and w, with w projected on the simplex.
    """

    weight_rate: float = number(1e-3, above=0)  # step size of w

    def _update(self) -> Update:
        return surrogate(self.weight_rate)
