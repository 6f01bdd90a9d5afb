"""Models that can only be asked: any callable, images (N, C, H, W) in [0, 1] -> class probabilities (N, K).

`of_module` makes one of a network, `foreign.of_onnx` of an ONNX file; a function around a served model's client
is one already. `Queries` stands between a detector and the model: it asks in batches, counts, checks the
answers, and refuses before a budget is exceeded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .ask import BATCH, PROBABILITIES, Cost, are_probabilities, evaluating

Probabilities = Callable[[Tensor], Tensor]


class QueryBudgetError(RuntimeError):
    """A request that the query budget does not cover; nothing was asked."""


class Queries:
    """A black-box model behind a counter; one image is one query.

    model: images (N, C, H, W) -> probabilities (N, n_classes).
    budget: queries that may be asked, None for no limit.
    batch_size: images per call of `model`.
    cost: the ledger; its `queries` grows.
    """

    def __init__(
        self,
        model: Probabilities,
        n_classes: int,
        *,
        budget: int | None = None,
        batch_size: int = BATCH,
        cost: Cost | None = None,
    ) -> None:
        if budget is not None and budget < 1:
            raise ValueError(f"budget = {budget}: at least one query is needed, or None for no limit")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: at least one image per call is needed")
        self.model, self.n_classes, self.budget, self.batch_size = model, n_classes, budget, batch_size
        self.cost = cost or Cost()
        self._spent_before = self.cost.queries

    @property
    def left(self) -> float:
        """Queries still allowed; inf without a budget."""
        return float("inf") if self.budget is None else self.budget - (self.cost.queries - self._spent_before)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Probabilities (N, K) of images (N, C, H, W), on their device.

        Raises QueryBudgetError before asking when N is more than `left`, and ValueError for an answer that is
        not probabilities.
        """
        if len(images) > self.left:
            raise QueryBudgetError(
                f"{len(images)} queries are wanted, {self.left:.0f} of {self.budget} are left"
            )
        answers = []
        for part in images.split(self.batch_size):
            # counted before the call: one that fails on the way was still asked
            self.cost.queries += len(part)
            answers.append(_checked(self.model(part), len(part), self.n_classes).to(images))
        return torch.cat(answers) if answers else images.new_empty(0, self.n_classes)


def _checked(answer: Tensor, n: int, k: int) -> Tensor:
    p = torch.as_tensor(answer)
    if p.shape != (n, k):
        raise ValueError(
            f"the model gave shape {tuple(p.shape)} for {n} images of {k} classes: (N, K) is needed"
        )
    slack = 1e-3 + min(0.005 * k, 0.05)  # services round their answers, to two decimals at worst
    if not (torch.isfinite(p).all() and p.min() >= -1e-6 and (p.sum(1) - 1).abs().max() < slack):
        low, high, total = float(p.min()), float(p.max()), float(p[0].sum())
        raise ValueError(
            f"the model gave values from {low:g} to {high:g}, the first ones summing to {total:g}: "
            "probabilities are needed, not logits"
        )
    return p


def black_box(model: nn.Module | Probabilities) -> Probabilities:
    """The model itself if it is a plain callable, the softmax of its logits if it is a network."""
    return of_module(model) if isinstance(model, nn.Module) else model


def of_module(model: nn.Module) -> Probabilities:
    """Softmax of a network's logits, in evaluation mode, without gradients."""

    @torch.no_grad()
    def probabilities(images: Tensor) -> Tensor:
        with evaluating(model):
            answers = model(images)
        if are_probabilities(answers):
            raise ValueError(PROBABILITIES)
        return torch.softmax(answers, 1)

    return probabilities
