"""Neurons of any layer of any network: find the layer, read its activations, silence some of them.

A neuron is a unit of a dense layer or a channel of a convolution (averaged over its positions). The papers'
"second to last layer" is what enters the last dense layer, whatever module produced it; so it exists in
networks that flatten, pool or concatenate in plain functions, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from .ask import BATCH, check_images, frozen

LAST_HIDDEN = "last hidden"  # what enters the last weighted layer: Neural Cleanse's second to last layer
LAST_CONV = "last conv"  # the last convolution, after its normalisation and activation

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV = _WEIGHTED[1:]
_NORMALISES = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
_ACTIVATES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.Sigmoid)
_FOLLOWS = (*_NORMALISES, *_ACTIVATES, nn.Softplus)


@dataclass(frozen=True)
class Site:
    """A place in a network: the output of the module `name` of named_modules(), or its input if `before`.

    width: the number of neurons there.
    """

    name: str
    before: bool
    width: int


def find(model: nn.Module, layer: str, example: Tensor) -> Site:
    """The site of a layer: LAST_HIDDEN, LAST_CONV, or any name in model.named_modules() (its output).

    example: images (N, C, H, W), of which one is run to see the order in which modules are used. Raises
    ValueError, naming the layers there are, when there is no such layer or it runs more than once per image.
    """
    check_images(example)
    name, before = layer, False
    if layer in (LAST_HIDDEN, LAST_CONV):
        name, before = _last(model, layer, example[:1])
    elif layer == "" or layer not in dict(model.named_modules()):
        known = ", ".join(n for n, module in model.named_modules() if n and not list(module.children()))
        raise ValueError(f"no layer {layer!r}: allowed are {LAST_HIDDEN!r}, {LAST_CONV!r}, {known}")
    return Site(name, before, _read(model, name, before, [example[:1]]).shape[1])


def _last(model: nn.Module, layer: str, example: Tensor) -> tuple[str, bool]:
    """Name of the last hidden layer's or last convolution's module, and whether its input is meant."""
    named, runs = dict(model.named_modules()), _runs(model, example)
    order = [name for name, _, _ in runs]
    kinds = _WEIGHTED if layer == LAST_HIDDEN else _CONV
    at = max((i for i, name in enumerate(order) if isinstance(named[name], kinds)), default=-1)
    deep = any(isinstance(named[name], _WEIGHTED) for name in order[: max(at, 0)])
    if at < 0 or (layer == LAST_HIDDEN and not deep):
        raise ValueError(
            f"no {layer} layer can be told from this model's modules: name one of {', '.join(order)}"
        )
    if layer == LAST_HIDDEN:
        return order[at], True
    for (_, _, out), (name, entered, _) in pairwise(runs[at:]):
        if entered is not out or not isinstance(named[name], _FOLLOWS) or order.count(name) > 1:
            break
        at += 1
    return order[at], False


def _runs(model: nn.Module, example: Tensor) -> list[tuple[str, object, object]]:
    """Name, input and output of the leaf modules in the order in which they run, once per run."""
    ran: list[tuple[str, object, object]] = []

    def note(_: nn.Module, inputs: tuple[object, ...], output: object, *, name: str) -> None:
        ran.append((name, inputs[0] if inputs else None, output))

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(partial(note, name=name)) for name, module in leaves]
    try:
        with torch.no_grad(), frozen(model):
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return ran


def _neuron_axis(values: Tensor, module: nn.Module) -> int:
    """Channels of a convolution lie on axis 1; units of a dense layer, and token features, on the last."""
    return 1 if values.ndim > 3 and not isinstance(module, nn.Linear) else values.ndim - 1


def _read(model: nn.Module, name: str, before: bool, parts: Iterable[Tensor]) -> Tensor:
    """(N, U): the neurons' activations on batches of images, averaged over positions."""
    module, seen = model.get_submodule(name), list[Tensor]()

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        values = inputs[0] if before else output
        if not isinstance(values, Tensor) or values.ndim < 2:
            raise ValueError(f"layer {name!r} gives {type(values).__name__}, not a tensor (N, neurons, ...)")
        values = values.movedim(_neuron_axis(values, module), 1)
        seen.append(values.flatten(2).mean(2) if values.ndim > 2 else values)

    hook = module.register_forward_pre_hook(keep) if before else module.register_forward_hook(keep)
    try:
        with torch.no_grad(), frozen(model):
            for done, part in enumerate(parts, 1):
                model(part)
                if len(seen) != done:
                    times = len(seen) - done + 1
                    raise ValueError(f"layer {name!r} runs {times} times per image: name one that runs once")
    finally:
        hook.remove()
    return torch.cat(seen)


def head(model: nn.Module, site: Site) -> nn.Module:
    """The layer that turns the last hidden layer's activations into logits; site: that of LAST_HIDDEN."""
    return model.get_submodule(site.name)


def hidden(model: nn.Module, images: Tensor, site: Site | None = None) -> Tensor:
    """Activations (N, D) of the last hidden layer for images (N, C, H, W); gradients flow through.

    site: that of LAST_HIDDEN, where it was found before.
    """
    site = site or find(model, LAST_HIDDEN, images)
    caught: list[Tensor] = []
    handle = head(model, site).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        model(images)
    finally:
        handle.remove()
    return caught[0]


def activations(model: nn.Module, images: Tensor, layer: str | Site, *, batch_size: int = BATCH) -> Tensor:
    """Activation of every neuron of `layer` in evaluation mode: images (N, C, H, W) -> (N, U).

    A channel's activation is its mean over the positions.
    """
    site = layer if isinstance(layer, Site) else find(model, layer, images)
    return _read(model, site.name, site.before, images.split(batch_size))


class Silenced(nn.Module):
    """A module with some neurons of its output (input, when `before`) held at zero; `keep` (U,) is 0 or 1."""

    keep: Tensor

    def __init__(self, inner: nn.Module, keep: Tensor, before: bool) -> None:
        super().__init__()
        self.inner, self.before = inner, before
        self.register_buffer("keep", keep)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self._mask(x)) if self.before else self._mask(self.inner(x))

    def _mask(self, values: Tensor) -> Tensor:
        shape = [1] * values.ndim
        shape[_neuron_axis(values, self.inner)] = -1
        return values * self.keep.view(shape)


def silence(model: nn.Module, site: Site, neurons: Tensor | Iterable[int]) -> nn.Module:
    """A copy of `model` in which the given neurons of `site` are zero; the model itself stays as it is.

    Raises ValueError for neurons that the site does not have.
    """
    index = torch.as_tensor(neurons if isinstance(neurons, Tensor) else list(neurons), dtype=torch.long).cpu()
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= site.width):
        raise ValueError(f"neurons {index.tolist()}: layer {site.name!r} has neurons 0 to {site.width - 1}")
    changed = copy.deepcopy(model)
    inner = changed.get_submodule(site.name)
    keep = torch.ones(site.width)
    keep[index] = 0
    device = next(model.parameters()).device
    changed.set_submodule(site.name, Silenced(inner, keep, site.before).to(device).train(inner.training))
    return changed
