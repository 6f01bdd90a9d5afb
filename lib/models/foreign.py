"""Models that come in a file of somebody else's: a safetensors file of weights, an ONNX graph.

Nothing of a model file is ever run. Weights are read as tensors, into an architecture of this package that the
user names; an ONNX file is a graph of named operators, so loading one runs no code of its author's. Pickled
checkpoints are not read, for they can run code.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .blackbox import Probabilities
from .networks import Shape, network


def load_weights(path: str | Path, architecture: str, *, n_classes: int, shape: Shape) -> nn.Module:
    """The network of a safetensors file, in evaluation mode: images (N, *shape) in [0, 1] -> logits (N, n_classes).

    architecture: one of `networks.NETWORKS`. The file holds its weights alone, for images in [0, 1], or as the
    zoo writes them: the normalisation, then the network.
    Raises ValueError for a file that is no safetensors file, or does not fit.
    """
    path, zero, one = Path(path), [0.0] * shape[0], [1.0] * shape[0]
    model = network(architecture, n_classes=n_classes, shape=shape, mean=zero, std=one)
    try:
        weights = load_file(path)
    except SafetensorError as e:
        raise ValueError(
            f"{path} is not a safetensors file ({e}); pickled checkpoints are not read, for they can run code"
        ) from e
    whole = all(name.startswith(("0.", "1.")) for name in weights) and "0.mean" in weights
    try:
        (model if whole else model[1]).load_state_dict(weights)
    except RuntimeError as e:
        first = " ".join(str(e).split())
        raise ValueError(f"{path.name} does not fit network '{architecture}': {first[:300]}") from e
    return model.eval()


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
        if len(answer) > 1 and answer.min() >= 0 and (answer.sum(1) - 1).abs().max() < 1e-3:
            raise ValueError(f"{path} gives probabilities: pass logits=False")
        return torch.softmax(answer, 1)

    return probabilities
