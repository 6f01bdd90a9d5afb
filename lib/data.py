"""Named image sets as tensors.

Images are float32 (N, C, H, W) in [0, 1] on the 8-bit grid, labels int64 (N,).

`digits` is embedded (scikit-learn) and needs no file. The other names of LOADERS come through torchvision,
and any other from a folder in ImageFolder layout with train/ and test/. The data root is the argument `root`,
else the variable REDBOOK_DATA, else `data/cache`.

    >>> held, judge = load("digits").halves()
    >>> held.images.shape, judge.first(2).labels.shape
    (torch.Size([248, 1, 16, 16]), torch.Size([2]))
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

# uint8 images (N, C, H, W) and int64 labels (N,) for training, the same for the test; class names.
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]


class DataError(ValueError):
    """An image set that is unknown, missing on this machine, or asked for in an impossible way."""


class Labelled(NamedTuple):
    """Images (N, C, H, W) and their labels (N,): `fit(model, *held)` hands over both.

    It is a pair, so `len(held)` is 2; the first eight images with their labels are `held.first(8)`.
    """

    images: Tensor
    labels: Tensor

    def first(self, n: int) -> Labelled:
        """The first n, or all where there are fewer."""
        return Labelled(self.images[:n], self.labels[:n])

    def of(self, which: Tensor | int) -> Labelled:
        """Those of one class, or those that a mask (N,) or an index picks."""
        chosen = which if isinstance(which, Tensor) else self.labels == which
        return Labelled(self.images[chosen], self.labels[chosen])

    def away(self, target: int) -> Labelled:
        """All but class `target`: what a trigger that leads there can be tried on."""
        return self.of(self.labels != target)


@dataclass(frozen=True)
class Dataset:
    """An image set in memory.

    hash: names its content; equal hashes, equal tensors and class names.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    hash: str

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        c, h, w = self.train_images.shape[1:]
        return c, h, w

    @property
    def train(self) -> Labelled:
        """The training images and labels."""
        return Labelled(self.train_images, self.train_labels)

    @property
    def test(self) -> Labelled:
        """The test images and labels."""
        return Labelled(self.test_images, self.test_labels)

    def halves(self) -> tuple[Labelled, Labelled]:
        """The test images in two: what the defender holds, and what the defence is judged on."""
        half = len(self.test_labels) // 2
        return self.test.first(half), Labelled(self.test_images[half:], self.test_labels[half:])

    def to(self, device: str | torch.device) -> Dataset:
        """The same image set with its tensors on `device`."""
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def root_folder(root: str | Path | None = None) -> Path:
    """The data root: the argument, else REDBOOK_DATA, else data/cache."""
    return Path(root or os.environ.get("REDBOOK_DATA") or "data/cache")


def load(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    classes: Iterable[int] | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
) -> Dataset:
    """Load an image set by name.

    name: one of LOADERS, or a folder with train/ and test/ (a path, or a name under the data root).
    root: the data root, where it is not the usual one.
    download: may torchvision fetch a set that is missing?
    classes: keep only these, renumbered 0, 1, … in the order given.
    n_train, n_test: keep the first so many of a fixed shuffle, the same for every call.

    Raises DataError for an unknown name, a missing set, or a class that does not exist.
    """
    arrays = _read(name, root_folder(root), download)
    return _finish(name, _subset(name, arrays, classes, n_train, n_test))


def _read(name: str, root: Path, download: bool) -> Arrays:
    if name not in LOADERS:
        return _folder(_find(name, root), root)
    try:
        return LOADERS[name](root, download)
    except RuntimeError as e:  # torchvision's, of a missing set
        raise DataError(
            f"{name} is not under {root}: pass download=True, or set REDBOOK_DATA to where it is ({e})"
        ) from e


def _find(name: str, root: Path) -> Path:
    """The folder that `name` means: as a path, else under the data root."""
    for path in (Path(name), root / name):
        if (path / "train").is_dir() and (path / "test").is_dir():
            return path
    raise DataError(
        f"no image set {name!r}: allowed are {', '.join(LOADERS)}, or a folder with train/ and test/"
        f" (looked in . and {root})"
    )


def _digits(root: Path, download: bool) -> Arrays:
    """The 1,797 digits of scikit-learn, 8x8 with 17 levels, enlarged to 16x16; 1,300 for training."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images / 16).float()[:, None]
    images = interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    pixels = (images * 255).round().to(torch.uint8).numpy()
    order = np.random.default_rng(0).permutation(len(pixels))
    pixels, labels = pixels[order], raw.target[order]
    return pixels[:1300], labels[:1300], pixels[1300:], labels[1300:], tuple(str(d) for d in range(10))


def _in_memory(kind: str, root: Path, download: bool) -> Arrays:
    """A set that torchvision holds as one array."""
    import torchvision.datasets as sets

    train, test = (getattr(sets, kind)(root, train=part, download=download) for part in (True, False))
    return (*_memory(train), *_memory(test), tuple(train.classes))


def _gtsrb(root: Path, download: bool) -> Arrays:
    """The traffic signs, which are files of many sizes, at 32x32."""
    from torchvision.datasets import GTSRB

    train, test = (GTSRB(root, split=part, download=download) for part in ("train", "test"))
    return (*_decode(train._samples, 32), *_decode(test._samples, 32), tuple(str(k) for k in range(43)))


def _memory(part: object) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = np.asarray(part.data), np.asarray(part.targets)  # type: ignore[attr-defined]
    return (pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)), labels


def _decode(samples: list[tuple[str, int]], size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read image files; all must have one size and mode unless `size` asks for a square resize."""
    from PIL import Image, UnidentifiedImageError
    from tqdm import tqdm

    pixels: list[np.ndarray] = []
    for path, _ in tqdm(samples, desc="reading images", disable=len(samples) < 2000, leave=False):
        try:
            with Image.open(path) as file:
                image = file if file.mode in ("L", "RGB") else file.convert("RGB")
                image = image.resize((size, size), Image.Resampling.BILINEAR) if size else image
                array = np.asarray(image)
        except (UnidentifiedImageError, OSError) as e:
            raise DataError(f"{path} is not a readable image: {e}") from e
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if pixels and array.shape != pixels[0].shape:
            raise DataError(
                f"{path} has shape {array.shape}, the images before it {pixels[0].shape}: all must be alike"
            )
        pixels.append(array)
    return np.stack(pixels), np.array([label for _, label in samples], dtype=np.int64)


def _folder(path: Path, root: Path) -> Arrays:
    """An ImageFolder pair, decoded once: the tensors are kept under the data root.

    Their file is named by the images' names, sizes and times, so that a changed folder is read again.
    """
    from torchvision.datasets import ImageFolder

    try:
        parts = [ImageFolder(path / which, allow_empty=False) for which in ("train", "test")]
    except FileNotFoundError as e:
        raise DataError(f"{path}: {e}") from e
    if parts[0].classes != parts[1].classes:
        train, test = (part.classes for part in parts)
        raise DataError(f"{path}: train/ has classes {train}, test/ has {test}; they must be the same")
    listing = [
        (os.path.relpath(f, path), s.st_size, s.st_mtime_ns)
        for p in parts
        for f, _ in p.samples
        for s in [os.stat(f)]
    ]
    key = hashlib.sha256(repr((str(path.resolve()), listing)).encode()).hexdigest()[:16]
    kept = root / "tensors" / f"{path.name}-{key}.safetensors"
    if not kept.exists():
        tensors: dict[str, Tensor] = {}
        for which, part in zip(("train", "test"), parts, strict=True):
            images, labels = _decode(part.samples)
            tensors |= {
                f"{which}_images": torch.from_numpy(images.copy()),
                f"{which}_labels": torch.from_numpy(labels),
            }
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.partial")
        save_file(tensors, partial)
        os.replace(partial, kept)
    t = {k: v.numpy() for k, v in load_file(kept).items()}
    return t["train_images"], t["train_labels"], t["test_images"], t["test_labels"], tuple(parts[0].classes)


LOADERS: dict[str, Callable[[Path, bool], Arrays]] = {  # of the data root, and whether to download
    "digits": _digits,
    "mnist": partial(_in_memory, "MNIST"),
    "fashion-mnist": partial(_in_memory, "FashionMNIST"),
    "cifar10": partial(_in_memory, "CIFAR10"),
    "cifar100": partial(_in_memory, "CIFAR100"),
    "gtsrb": _gtsrb,
}


def _subset(
    name: str, arrays: Arrays, classes: Iterable[int] | None, n_train: int | None, n_test: int | None
) -> Arrays:
    parts, names = [arrays[:2], arrays[2:4]], arrays[4]
    if classes is not None:
        keep = [int(k) for k in classes]
        if len(set(keep)) < 2 or len(set(keep)) != len(keep) or not all(0 <= k < len(names) for k in keep):
            wanted = f"two or more different numbers from 0 to {len(names) - 1}"
            raise DataError(f"classes {keep} of {name}: allowed are {wanted}")
        renumber = np.full(len(names), -1)
        renumber[keep] = np.arange(len(keep))
        parts = [(x[renumber[y] >= 0], renumber[y][renumber[y] >= 0]) for x, y in parts]
        names = tuple(names[k] for k in keep)
    for i, (n, which) in enumerate(((n_train, "n_train"), (n_test, "n_test"))):
        x, y = parts[i]
        if n is not None:
            if not len(names) <= n <= len(x):
                raise DataError(f"{which} = {n} for {name}: allowed are {len(names)} to {len(x)}")
            order = np.random.default_rng(0).permutation(len(x))[:n]
            parts[i] = x[order], y[order]
    return (*parts[0], *parts[1], names)


def _finish(name: str, arrays: Arrays) -> Dataset:
    digest = hashlib.sha256(repr(arrays[4]).encode())
    for array in arrays[:4]:
        digest.update(repr((array.shape, array.dtype.name)).encode() + np.ascontiguousarray(array).tobytes())
    x, y, u, z = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays[:4])
    return Dataset(name, x.float() / 255, y.long(), u.float() / 255, z.long(), arrays[4], digest.hexdigest())


def clean_per_class(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    n: int,
    *,
    n_classes: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw n correctly classified images of every class, (K, n, C, H, W): a detector's clean data.

    predict: images -> predicted labels (N,).
    images, labels: where to draw from, (N, C, H, W) and (N,).
    generator: on the CPU.

    Raises DataError when a class has fewer than n correctly classified images.
    """
    right = predict(images) == labels
    chosen = []
    for k in range(n_classes):
        of = torch.nonzero(right & (labels == k)).flatten().cpu()
        if len(of) < n:
            raise DataError(f"class {k} has {len(of)} correctly classified images; {n} are needed")
        chosen.append(of[torch.randperm(len(of), generator=generator)[:n]])
    return images[torch.stack(chosen).to(images.device)]
