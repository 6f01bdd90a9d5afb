"""A GPU that is none: CPU tensors that say they lie elsewhere, and may not meet those that do not.

    with pretend.device() as there:
        detector.scan(pretend.moved(model), images.to(there))

Everything runs, control flow that looks at values too, and gives what it gives on the CPU; an operation that mixes the two
raises, as it would with a GPU. The device is called "meta", the only name that PyTorch takes for one that it does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

THERE = torch.device("meta:0")
# As with CUDA: one number may come from the CPU, an index too, and copies go either way.
MAY_MIX = ("_to_copy", "copy_", "aten::index", "aten::_index_put_impl")


class Elsewhere(Tensor):
    """A tensor of the CPU, `inner`, that says it lies on THERE."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=THERE,
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, tensors = func.name(), [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    theirs = [a for a in tensors if isinstance(a, Elsewhere)]
    ours = [a for a in tensors if not isinstance(a, Elsewhere) and a.dim()]
    if theirs and ours and not any(word in name for word in MAY_MIX):
        raise RuntimeError(f"{name}: tensors on {THERE} and on the CPU")
    there = bool(theirs)
    if kwargs.get("device") is not None:
        there, kwargs = (
            torch.device(kwargs["device"]).type == THERE.type,
            kwargs | {"device": torch.device("cpu")},
        )
    if "copy_" in name and "_to_copy" not in name:
        there = isinstance(args[0], Elsewhere)
    args_, kwargs_ = tree_map(lambda a: a.inner if isinstance(a, Elsewhere) else a, (args, kwargs))
    out = func(*args_, **kwargs_)
    if args_ and out is args_[0]:  # in place
        return args[0]
    return tree_map(lambda a: Elsewhere(a) if isinstance(a, Tensor) and there else a, out)


class _Mode(TorchDispatchMode):
    """Tensors that are made on THERE are made here, and say so."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Generator(torch.Generator):
    """A generator of the CPU that says where it was asked to be."""

    where: torch.device

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")
        made.where = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return THERE if self.where.type == THERE.type else self.where


@contextmanager
def device() -> Iterator[torch.device]:
    """Inside, THERE is a device like any other."""
    with pytest.MonkeyPatch.context() as patch, _Mode():
        patch.setattr(torch, "Generator", _Generator)
        for name in ("tensor", "as_tensor"):  # these are made before any mode is asked
            patch.setattr(torch, name, _made(getattr(torch, name)))
        patch.setattr(torch, "autocast", lambda kind, *_, enabled=True, **__: nullcontext())
        yield THERE


def _made(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def here_first(values: Any, *, device: Any = None, **how: Any) -> Tensor:
        made = make(values, **how)
        return made if device is None else made.to(device)

    return here_first


def moved(model: nn.Module) -> nn.Module:
    """The model with its parameters and buffers on THERE, in place."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and not isinstance(p, Elsewhere):
                module._parameters[name] = nn.Parameter(Elsewhere(p.data), requires_grad=p.requires_grad)  # type: ignore[arg-type]
        for name, b in module._buffers.items():
            if b is not None and not isinstance(b, Elsewhere):
                module._buffers[name] = Elsewhere(b)
    return model
