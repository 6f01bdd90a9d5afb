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
from tqdm import tqdm

from .descent import Descent, State, stamp
from .pattern_search import Problems, Recorder, log_posterior
from .scan import Cost, frozen, seeded
from .weights import Update, frozen_weights


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an extra loss term may look at, for the A problems still running.

    images and stamped (A, S, r, C, H, W), labels (A, S) of the images' classes, mask (A, H, W) and pattern
    (A, C, H, W) with gradients, target (A,), cost (A,) the weight of |m|_1. log_posterior(images (N, C, H,
    W)) -> (N, K) asks the model and books its cost.
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


@dataclass(frozen=True, kw_only=True)
class Masks:
    """mask (B, H, W), pattern (B, C, H, W), norms (B,) = |m|_1; success (B,) and q (B, S): the share on all
    clean images of the sources, weighted and per class; w (B, S); converged (B,): did a round reach pi?;
    rounds (B,); trajectory tensors (rounds, B, ...).
    """

    mask: Tensor
    pattern: Tensor
    norms: Tensor
    success: Tensor
    q: Tensor
    w: Tensor
    converged: Tensor
    rounds: Tensor
    trajectory: dict[str, Tensor]


def random_start(shape: torch.Size, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Uniform random mask (H, W) and pattern (C, H, W), as in the released code; one for all problems."""
    c, h, w = shape
    draw = seeded(generator)
    mask = torch.rand(h, w, generator=draw, device=draw.device)
    return mask, torch.rand(c, h, w, generator=draw, device=draw.device)


def estimate_masks(
    model: nn.Module,
    clean: Tensor,
    problems: Problems,
    how: Descent,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    extra: Extra | None = None,
    weights: Tensor | None = None,
    update: Update | None = None,
    generator: torch.Generator | None = None,
    watch: Callable[[Tensor], bool] | None = None,
    cost: Cost | None = None,
    progress: bool = False,
) -> Masks:
    """Solve all problems at once. clean: (K, n, C, H, W), correctly classified.

    start: mask (H, W) or (B, H, W) and pattern (C, H, W) or (B, C, H, W); random without it. extra: more loss
    terms. weights: of the sources at first (B, S), uniform without. update: the per-source weights hook, as
    in `weights.py`: after each round new weights from (w, q, mean log-posteriors, all (B, S); round); the
    success share that is compared with pi uses the old ones. generator: draws the start and the batches.
    watch: shown the current norms (B,) after every round; True ends the run with what there is. Raises
    ValueError if the model gives anything but (N, K) finite logits.
    """
    cost, (k, n) = cost or Cost(), clean.shape[:2]
    problems = Problems(problems.target.to(clean.device), problems.sources.to(clean.device))
    b, s = problems.sources.shape
    per_class = min(n, -(-how.batch // s))
    update, recorder = update or frozen_weights(), Recorder(how.record_every, b)
    first = start or random_start(clean.shape[2:], generator)
    state = State(how, first, b, s, clean.device)
    if weights is not None:
        state.w, state.w_kept = weights.clone(), weights.clone()
    batches = _batches(n, per_class, generator)
    with cost.clock(), frozen(model), tqdm(total=b, desc="masks", disable=not progress, leave=False) as bar:
        log_posterior = _counted(model, k, cost)
        for turn in range(how.max_rounds):
            q, toward = torch.zeros_like(state.w), torch.zeros_like(state.w)
            for _ in range(how.round_steps):
                index = next(batches).to(clean.device)
                shares, posteriors = _descend(state, clean[:, index], problems, log_posterior, extra)
                q, toward = q + shares / how.round_steps, toward + posteriors / how.round_steps
            success = (state.w * q).sum(1)
            mask = state.look(success)
            state.w, temperature = update(state.w, q, toward, turn)
            recorder.keep(
                turn,
                state.index,
                norm=mask.sum((1, 2)),
                Q=success,
                T=temperature,
                cost=state.cost,
                w=state.w,
                q=q,
                v=mask,
            )
            finished = watch is not None and watch(state.norms())
            bar.update(state.retire(turn + 1, last=finished or turn + 1 == how.max_rounds))
            if finished or not len(state.index):
                break
        q = _shares(state.mask, state.pattern, clean, problems, log_posterior)
    trajectory = {"mask" if name == "v" else name: t for name, t in recorder.tensors().items()}
    return Masks(
        mask=state.mask,
        pattern=state.pattern,
        norms=state.mask.sum((1, 2)),
        success=(state.w_kept * q).sum(1),
        q=q,
        w=state.w_kept,
        converged=state.converged,
        rounds=state.rounds,
        trajectory=trajectory,
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


def _descend(
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
        loss = loss + extra(
            Step(
                images=images,
                stamped=stamped,
                labels=sources,
                mask=mask,
                pattern=pattern,
                target=target,
                cost=state.cost,
                log_posterior=ask,
            )
        )
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
            ask(stamp(part[None], m[None], u[None])[0]).argmax(1) for part in images.flatten(0, 1).split(1000)
        ]
        found.append((torch.cat(predicted) == target).float().view(images.shape[:2]).mean(1))
    return torch.stack(found)
