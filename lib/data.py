"""Named image sets as tensors: float32 images (N, C, H, W) in [0, 1] on the 8-bit grid, int64 labels (N,).

`digits` is embedded (scikit-learn) and needs no file. The others come through torchvision, or from a folder
in ImageFolder layout with train/ and test/. The data root is the argument `root`, else the variable
REDBOOK_DATA, else `data/cache`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

Arrays = tuple[
    np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]
]  # uint8 N,C,H,W and int64 N, train then test; class names
TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "gtsrb": "GTSRB",
}


class DataError(ValueError):
    """An image set that is unknown, missing on this machine, or asked for in an impossible way."""


@dataclass(frozen=True)
class Dataset:
    """An image set in memory. `hash` names its content: equal hashes, equal tensors and class names."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    hash: str

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        c, h, w = self.train_images.shape[1:]
        return c, h, w


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
    """Load an image set by name, or a folder with train/ and test/ (a path, or a name under the data root).

    classes: keep only these, renumbered 0, 1, … in the order given. n_train, n_test: keep the first so many
    of a fixed shuffle, the same for every call. Raises DataError for an unknown name, a missing set, or a
    class that does not exist.
    """
    folder = root_folder(root)
    if name == "digits":
        arrays = _digits()
    elif name in TORCHVISION:
        arrays = _torchvision(name, folder, download)
    else:
        path = next(
            (p for p in (Path(name), folder / name) if (p / "train").is_dir() and (p / "test").is_dir()), None
        )
        if path is None:
            known = ", ".join(["digits", *TORCHVISION])
            raise DataError(
                f"no image set {name!r}: allowed are {known}, or a folder with train/ and test/ (looked in . and {folder})"
            )
        arrays = _folder(path, folder / "tensors")
    return _finish(name, _subset(name, arrays, classes, n_train, n_test))


def _digits() -> Arrays:
    """The 1,797 digits of scikit-learn, 8x8 with 17 levels,
    enlarged to 16x16 on the 8-bit grid; 1,300 for training.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images / 16).float()[:, None]
    images = interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    pixels = (images * 255).round().to(torch.uint8).numpy()
    order = np.random.default_rng(0).permutation(len(pixels))
    pixels, labels = pixels[order], raw.target[order]
    return pixels[:1300], labels[:1300], pixels[1300:], labels[1300:], tuple(str(d) for d in range(10))


def _torchvision(name: str, folder: Path, download: bool) -> Arrays:
    import torchvision.datasets as sets

    def part(train: bool) -> object:
        if name == "gtsrb":
            return sets.GTSRB(folder, split="train" if train else "test", download=download)
        return getattr(sets, TORCHVISION[name])(folder, train=train, download=download)

    try:
        train, test = part(True), part(False)
    except RuntimeError as e:
        raise DataError(
            f"{name} is not under {folder}: pass download=True, or set REDBOOK_DATA to where it is ({e})"
        ) from e
    if name == "gtsrb":
        return (*_decode(train._samples, 32), *_decode(test._samples, 32), tuple(str(k) for k in range(43)))  # type: ignore[attr-defined]
    return (*_memory(train), *_memory(test), tuple(train.classes))  # type: ignore[attr-defined]


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


def _folder(path: Path, cache: Path) -> Arrays:
    """An ImageFolder pair, decoded once: the tensors are kept under the data root,
    keyed by file names, sizes and times.
    """
    from torchvision.datasets import ImageFolder

    try:
        parts = [ImageFolder(path / which, allow_empty=False) for which in ("train", "test")]
    except FileNotFoundError as e:
        raise DataError(f"{path}: {e}") from e
    if parts[0].classes != parts[1].classes:
        raise DataError(
            f"{path}: train/ has classes {parts[0].classes}, test/ has {parts[1].classes}; they must be the same"
        )
    listing = [
        (os.path.relpath(f, path), s.st_size, s.st_mtime_ns)
        for p in parts
        for f, _ in p.samples
        for s in [os.stat(f)]
    ]
    key = hashlib.sha256(repr((str(path.resolve()), listing)).encode()).hexdigest()[:16]
    kept = cache / f"{path.name}-{key}.safetensors"
    if not kept.exists():
        tensors: dict[str, Tensor] = {}
        for which, part in zip(("train", "test"), parts, strict=True):
            images, labels = _decode(part.samples)
            tensors |= {
                f"{which}_images": torch.from_numpy(images.copy()),
                f"{which}_labels": torch.from_numpy(labels),
            }
        cache.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.partial")
        save_file(tensors, partial)
        os.replace(partial, kept)
    t = {k: v.numpy() for k, v in load_file(kept).items()}
    return t["train_images"], t["train_labels"], t["test_images"], t["test_labels"], tuple(parts[0].classes)


def _subset(
    name: str, arrays: Arrays, classes: Iterable[int] | None, n_train: int | None, n_test: int | None
) -> Arrays:
    parts, names = [arrays[:2], arrays[2:4]], arrays[4]
    if classes is not None:
        keep = [int(k) for k in classes]
        if len(set(keep)) < 2 or len(set(keep)) != len(keep) or not all(0 <= k < len(names) for k in keep):
            raise DataError(
                f"classes {keep} of {name}: allowed are two or more different numbers from 0 to {len(names) - 1}"
            )
        renumber = np.full(len(names), -1)
        renumber[keep] = np.arange(len(keep))
        parts = [(x[renumber[y] >= 0], renumber[y][renumber[y] >= 0]) for x, y in parts]
        names = tuple(names[k] for k in keep)
    for i, (wanted, which) in enumerate(((n_train, "n_train"), (n_test, "n_test"))):
        x, y = parts[i]
        if wanted is not None:
            if not len(names) <= wanted <= len(x):
                raise DataError(f"{which} = {wanted} for {name}: allowed are {len(names)} to {len(x)}")
            order = np.random.default_rng(0).permutation(len(x))[:wanted]
            parts[i] = x[order], y[order]
    return (*parts[0], *parts[1], names)


def _finish(name: str, arrays: Arrays) -> Dataset:
    digest = hashlib.sha256(repr(arrays[4]).encode())
    for array in arrays[:4]:
        digest.update(repr((array.shape, array.dtype.name)).encode() + np.ascontiguousarray(array).tobytes())
    x, y, u, z = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays[:4])
    return Dataset(name, x.float() / 255, y.long(), u.float() / 255, z.long(), arrays[4], digest.hexdigest())


def to(dataset: Dataset, device: str | torch.device) -> Dataset:
    """The same image set with its tensors on `device`."""
    tensors = {
        k: getattr(dataset, k).to(device)
        for k in ("train_images", "train_labels", "test_images", "test_labels")
    }
    return replace(dataset, **tensors)


def clean_per_class(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    n: int,
    *,
    n_classes: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw n correctly classified images of every class, as L-RED's detection data: (K, n, C, H, W).

    predict: images -> labels (N,). Raises DataError when a class has fewer than n correctly classified
    images.
    """
    right = predict(images) == labels
    chosen = []
    for k in range(n_classes):
        of = torch.nonzero(right & (labels == k)).flatten().cpu()
        if len(of) < n:
            raise DataError(f"class {k} has {len(of)} correctly classified images; {n} are needed")
        chosen.append(of[torch.randperm(len(of), generator=generator)[:n]])
    return images[torch.stack(chosen).to(images.device)]
