"""Models that come in a file of somebody else's: a safetensors file of weights, an ONNX graph.

Nothing of a model file is ever run. Weights are read as tensors, into an architecture of this package that the
user names; an ONNX file is a graph of named operators, so loading one runs no code of its author's. Pickled
checkpoints are not read, for they can run code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .ask import are_probabilities
from .blackbox import Probabilities
from .networks import Shape, network

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_weights(
    path: str | Path,
    architecture: str,
    *,
    n_classes: int,
    shape: Shape,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """The network of a safetensors file, in evaluation mode: images (N, *shape) in [0, 1] -> logits (N, n_classes).

    architecture: one of `networks.NETWORKS`. The file holds its weights alone, or as the zoo writes them: the
        normalisation, then the network.
    mean, std: what its images were normalised by, a number for each channel, where that is not in the file.
    Raises ValueError for a file that is no safetensors file, or does not fit.
    """
    path = Path(path)
    normalisation: dict[str, Any] = {"mean": mean or [0.0] * shape[0], "std": std or [1.0] * shape[0]}
    model = network(architecture, n_classes=n_classes, shape=shape, **normalisation)
    weights = _tensors(path)
    whole = all(name.startswith(("0.", "1.")) for name in weights) and "0.mean" in weights
    if whole and mean is not None:
        raise ValueError(f"{path} has its normalisation inside: no other mean and std can be given")
    try:
        fill(model if whole else model[1], weights, or_as=() if whole else model.state_dict())
    except ValueError as e:
        raise ValueError(f"{path} does not fit network {architecture!r}: {e}") from None
    return model.eval()


def fill(model: nn.Module, weights: Mapping[str, Tensor], *, or_as: Iterable[str] = ()) -> None:
    """Give a network these tensors, which somebody may have changed.

    or_as: other names that they may have, where a remedy is to be told.
    Raises ValueError for other names or shapes, numbers that are no floats where floats are needed, and values
    that are not finite.
    """
    wanted = model.state_dict()
    _check_names(weights, wanted, or_as)
    for name, tensor in weights.items():
        _check_tensor(name, tensor, wanted[name])
    model.load_state_dict(weights)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError as e:
        raise ValueError(f"{path} cannot be read: {e}") from e
    except Exception as e:  # of a damaged file, or of numbers that this PyTorch does not know
        raise ValueError(
            f"{path} is not a safetensors file ({e}); pickled checkpoints are not read, for they can run code: "
            "of one that you trust, save the weights with safetensors.torch.save_file"
        ) from e


def _check_names(weights: Mapping[str, Tensor], wanted: Iterable[str], or_as: Iterable[str]) -> None:
    """Raise ValueError, with a remedy where one can be told, unless the file has the tensors that are wanted."""
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}  # a file may lack these
    missing, more = sorted(needed - set(weights)), sorted(set(weights) - set(wanted))
    if not (missing or more):
        return
    for names in (sorted(or_as), sorted(needed)):  # the whole network first: its normalisation is to stay
        names = [name for name in names if not name.endswith("num_batches_tracked")]
        one = min(names, default="nothing")
        for prefix in {name.removesuffix(one) for name in weights if name.endswith(one)} - {""}:
            if names and all(prefix + name in weights for name in names):
                remedy = f"save {{name.removeprefix({prefix!r}): tensor}} of those that begin with it"
                raise ValueError(f"the names of its tensors begin with {prefix!r}: {remedy}")
    lacks = f"it lacks {_few(missing)}" if missing else ""
    has = f"it has {_few(more)}, which the network has not" if more else ""
    raise ValueError("; ".join(filter(None, (lacks, has))))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_tensor(name: str, tensor: Tensor, wanted: Tensor) -> None:
    """Raise ValueError unless one tensor of a file can stand for the network's own."""
    if tensor.shape != wanted.shape:
        shapes = f"shape {tuple(tensor.shape)}, {tuple(wanted.shape)} is needed"
        raise ValueError(f"tensor {name} has {shapes}")
    if not wanted.is_floating_point():
        if tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"tensor {name} holds {tensor.dtype}: whole numbers are needed")
        return
    if tensor.dtype not in FLOATS:
        raise ValueError(f"tensor {name} holds {tensor.dtype}: floats of 16, 32 or 64 bits are needed")
    bad = int((~torch.isfinite(tensor.to(wanted.dtype))).sum())
    if bad:
        raise ValueError(f"{bad} of {tensor.numel()} values of tensor {name} are not finite")
    if name.endswith("running_var") and tensor.min() < 0:
        raise ValueError(f"tensor {name} has a variance below 0")
    if name == "0.std" and tensor.min() <= 0:
        raise ValueError(f"tensor {name} has a standard deviation of 0 or less")


def of_onnx(path: str | Path, *, logits: bool = True, threads: int | None = None) -> Probabilities:
    """A classifier in an ONNX file: one input (N, C, H, W) in [0, 1], first output (N, K).

    A file with a fixed batch size is asked in batches of that size, the last one padded.
    logits: does it give logits (the softmax is taken here) or probabilities? Saying logits of a model that gives
        probabilities would flatten them unnoticed, so such answers are refused.
    threads: of onnxruntime; default its own choice.
    Raises ValueError for a file that cannot be loaded or has another signature, ImportError without onnxruntime
    (`pip install "red-book[blackbox]"`).
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
        if are_probabilities(answer):
            raise ValueError(f"{path} gives probabilities: pass logits=False")
        return torch.softmax(answer, 1)

    return probabilities
