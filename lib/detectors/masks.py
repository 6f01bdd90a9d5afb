"""Mask-and-pattern estimation: the engine of Neural Cleanse, TABOR-style NC, USB's refinement, masked L-RED.

It solves B problems side by side. A problem is a putative target, S putative source classes, a mask m (H, W)
shared by the channels and a pattern u (C, H, W); its trigger replaces pixels, x (1 - m) + u m (Neural Cleanse
Eq. 2). Minimised is (Eq. 3)

    sum_s w_s mean_{x in D_s} -log p(t | stamped x)  +  cost |m|_1  +  extra terms,

m = (tanh a + 1) / 2 and u = (tanh b + 1) / 2, by Adam on (a, b). Each problem has a cost and an Adam state of
its own and is retired as soon as it is done, so no problem can touch another's result.

The papers leave most of this open. The rule for the cost is that of Neural Cleanse's released code: after
`patience` successful rounds in a row (success >= pi) it doubles, after as many failures it falls by 2^1.5;
kept is the smallest mask of a successful round. Ours are: a batch holds equally many images of each source
class, the same positions in every class, and all problems start alike, so the numbering of the classes cannot
matter; images of the target class are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import Cost, log_posterior
from ..models.ask import BATCH
from .base import Recorder, Run, seeded
from .descent import Descent, State, stamp
from .lred_annealing import Update, frozen_weights
from .parts import in_parts
from .scan import Found, Problems


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an extra loss term may look at, for the A problems still running.

    images, stamped: (A, S, r, C, H, W).
    labels: (A, S) of the images' classes.
    mask, pattern: (A, H, W) and (A, C, H, W), with gradients.
    target: (A,).
    cost: (A,) the weight of |m|_1.
    log_posterior: images (N, C, H, W) -> (N, K); asks the model and books its cost.
    """

    images: Tensor
    stamped: Tensor
    labels: Tensor
    mask: Tensor
    pattern: Tensor
    target: Tensor
    cost: Tensor
    log_posterior: Callable[[Tensor], Tensor]


Extra = Callable[[Step], Tensor]  # -> one loss per problem (A,), added to the loss of Eq. (3)


def random_start(shape: torch.Size, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Uniform random mask (H, W) and pattern (C, H, W), as in the released code; one for all problems."""
    c, h, w = shape
    draw = seeded(generator)
    mask = torch.rand(h, w, generator=draw, device=draw.device)
    return mask, torch.rand(c, h, w, generator=draw, device=draw.device)


def estimate_masks(
    run: Run,
    problems: Problems,
    how: Descent,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    extra: Extra | None = None,
    weights: Tensor | None = None,
    update: Update | None = None,
    watch: Callable[[Tensor], bool] | None = None,
) -> Found:
    """Solve all problems; norms are |m|_1, success is the share on all clean images of the sources.

    start: mask (H, W) or (B, H, W) and pattern (C, H, W) or (B, C, H, W); random without it.
    extra: more loss terms.
    weights: of the sources at first (B, S); uniform without.
    update: after each round new weights from (w, q, mean log-posteriors, all (B, S); round), as in
        `lred_annealing.py`; the success share that is compared with pi uses the old ones.
    watch: shown the current norms (B,) after every round; True ends the run with what there is.
    Raises ValueError if the model gives anything but (N, K) finite logits.
    """
    problems = problems.to(run.clean.device)
    (b, s), n, device = problems.sources.shape, run.clean.shape[1], run.clean.device
    mask, pattern = start or random_start(run.clean.shape[2:], run.generator)
    mask = mask.to(device).expand(b, *mask.shape[-2:])
    pattern = pattern.to(device).expand(b, *pattern.shape[-3:])
    each = min(n, -(-how.batch // s))  # images of a source class in a step

    def solve(part: Run, rows: Tensor, tell: Callable[[int], object]) -> Found:
        some = Problems(problems.target[rows], problems.sources[rows])
        state = State(how, (mask[rows], pattern[rows]), len(rows), s, device)
        if weights is not None:
            state.w, state.w_kept = weights[rows].clone(), weights[rows].clone()
        return _descend(part, some, how, state, each, extra, update or frozen_weights(), watch, tell)

    return in_parts(run, b, s * each, solve, whole=watch is not None)


def _descend(
    run: Run,
    problems: Problems,
    how: Descent,
    state: State,
    each: int,
    extra: Extra | None,
    update: Update,
    watch: Callable[[Tensor], bool] | None,
    tell: Callable[[int], object],
) -> Found:
    clean, (k, n) = run.clean, run.clean.shape[:2]
    recorder, batches = Recorder(how.record_every, len(state.index)), _batches(n, each, run.generator)
    ask = _counted(run.model, k, run.cost)
    for turn in range(how.max_rounds):
        q, toward = torch.zeros_like(state.w), torch.zeros_like(state.w)
        for _ in range(how.round_steps):
            index = next(batches).to(clean.device)
            shares, posteriors = _step(state, clean[:, index], problems, ask, extra)
            q, toward = q + shares / how.round_steps, toward + posteriors / how.round_steps
        success = (state.w * q).sum(1)
        mask = state.look(success)
        state.w, temperature = update(state.w, q, toward, turn)
        known = {"Q": success, "T": temperature, "cost": state.cost, "w": state.w, "q": q}
        recorder.keep(turn, state.index, norm=mask.sum((1, 2)), **known, v=mask)
        finished = (watch is not None and watch(state.norms())) or run.stopped
        tell(state.retire(turn + 1, last=finished or turn + 1 == how.max_rounds))
        if finished or not len(state.index):
            break
    q = _shares(state.mask, state.pattern, clean, problems, ask)
    return Found(
        norms=state.mask.sum((1, 2)),
        mask=state.mask,
        pattern=state.pattern,
        success=(state.w_kept * q).sum(1),
        q=q,
        w=state.w_kept,
        reached=state.reached,
        converged=state.converged,
        steps=state.rounds,
        trajectory=recorder.tensors(trigger="mask"),
    )


def _counted(model: nn.Module, k: int, cost: Cost) -> Callable[[Tensor], Tensor]:
    """Images (N, C, H, W) -> log-posteriors (N, K), booked; a gradient too where one can be asked for."""

    def ask(images: Tensor) -> Tensor:
        cost.forward += len(images)
        cost.backward += len(images) if images.requires_grad else 0
        return log_posterior(model, images, k)

    return ask


def _batches(n: int, size: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Positions 0 ... n-1 in shuffled passes, `size` at a time, for ever; all each time when size is n."""
    draw = seeded(generator)
    while True:
        order = torch.arange(n) if size == n else torch.randperm(n, generator=draw, device=draw.device)
        yield from (part for part in order.split(size) if len(part) == size)


def _step(
    state: State, clean: Tensor, problems: Problems, ask: Callable[[Tensor], Tensor], extra: Extra | None
) -> tuple[Tensor, Tensor]:
    """One Adam step on clean images (K, r, C, H, W); shares and mean log-posteriors (A, S) before it."""
    mask, pattern = state.parameters()
    target, sources = problems.target[state.index], problems.sources[state.index]
    images = clean[sources]
    stamped = stamp(images, mask, pattern)
    log_p = ask(stamped.flatten(0, 2)).view(*stamped.shape[:3], -1)
    toward = log_p.gather(3, target[:, None, None, None].expand(*log_p.shape[:3], 1))[..., 0]
    loss = -(state.w * toward.mean(2)).sum(1) + state.cost * mask.sum((1, 2))
    if extra is not None:
        seen = {"images": images, "stamped": stamped, "labels": sources, "mask": mask, "pattern": pattern}
        loss = loss + extra(Step(**seen, target=target, cost=state.cost, log_posterior=ask))
    state.step(loss.sum())
    shares = (log_p.detach().argmax(3) == target[:, None, None]).float().mean(2)
    return shares, toward.detach().mean(2)


@torch.no_grad()
def _shares(
    mask: Tensor, pattern: Tensor, clean: Tensor, problems: Problems, ask: Callable[[Tensor], Tensor]
) -> Tensor:
    """Share of all clean images of each source (B, S) that the final triggers send to the target."""
    found = []
    for m, u, target, sources in zip(mask, pattern, problems.target, problems.sources, strict=True):
        images = clean[sources]
        predicted = [
            ask(stamp(part[None], m[None], u[None])[0]).argmax(1)
            for part in images.flatten(0, 1).split(BATCH)
        ]
        found.append((torch.cat(predicted) == target).float().view(images.shape[:2]).mean(1))
    return torch.stack(found)
