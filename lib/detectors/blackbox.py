"""Models that can only be asked: any callable, images (N, C, H, W) in [0, 1] -> class probabilities (N, K).

`of_module` makes one of a network, `of_onnx` of an ONNX file (extra `blackbox`); a function around a served
model's client is one already. `Queries` stands between a detector and the model: it asks in batches, counts,
checks the answers, and refuses before a budget is exceeded. An ONNX file is a graph of named operators, so
loading one runs no code of its author's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .scan import Cost

Probabilities = Callable[[Tensor], Tensor]


class QueryBudgetError(RuntimeError):
    """A request that the query budget does not cover; nothing was asked."""


class Queries:
    """A black-box model behind a counter; one image is one query.

    budget: queries that may be asked, None for no limit. batch_size: images per call of `model`.
    The ledger is `cost.queries`.
    """

    def __init__(
        self,
        model: Probabilities,
        n_classes: int,
        *,
        budget: int | None = None,
        batch_size: int = 2000,
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

        Raises QueryBudgetError before asking when N is more than `left`;
        ValueError for an answer that is not probabilities.
        """
        if len(images) > self.left:
            raise QueryBudgetError(
                f"{len(images)} queries are wanted, {self.left:.0f} of {self.budget} are left"
            )
        answers = []
        for part in images.split(self.batch_size):
            self.cost.queries += len(
                part
            )  # counted before the call: one that fails on the way was still asked
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
        was_training = model.training
        model.eval()
        try:
            return torch.softmax(model(images), 1)
        finally:
            model.train(was_training)

    return probabilities


def of_onnx(path: str | Path, *, logits: bool = True, threads: int | None = None) -> Probabilities:
    """A classifier in an ONNX file: one input (N, C, H, W) in [0, 1], first output (N, K).

    logits: does it give logits (the softmax is taken here) or probabilities? Saying logits of a model that
    gives probabilities would flatten them unnoticed, so such answers are refused. A file with a fixed batch
    size is asked in batches of that size, the last one padded. threads: of onnxruntime, default its own
    choice. Raises ValueError for a file that cannot be loaded or has another signature, ImportError without
    onnxruntime (`pip install "red-book[blackbox]"`).
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise ImportError('ONNX models need onnxruntime: pip install "red-book[blackbox]"') from e
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=onnxruntime.get_available_providers()
        )
    except Exception as e:  # onnxruntime's errors have no common base of their own
        raise ValueError(f"{path} is not a model that onnxruntime can load: {e}") from e
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{i.name} {i.shape} {i.type}" for i in inputs)
        raise ValueError(f"{path} has inputs {found}: one float input (N, C, H, W) is needed")
    name, fixed = inputs[0].name, inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None

    def ask(images: Tensor) -> Tensor:
        missing = 0 if fixed is None else fixed - len(images)
        batch = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
        return torch.from_numpy(session.run(None, {name: batch.contiguous().numpy()})[0])[: len(images)]

    def probabilities(images: Tensor) -> Tensor:
        answer = torch.cat([ask(part) for part in images.detach().cpu().float().split(fixed or len(images))])
        if not logits:
            return answer
        if len(answer) > 1 and answer.min() >= 0 and (answer.sum(1) - 1).abs().max() < 1e-3:
            raise ValueError(f"{path} gives probabilities: pass logits=False")
        return torch.softmax(answer, 1)

    return probabilities
