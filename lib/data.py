"""Named image sets as tensors.

Images are float32 (N, C, H, W) in [0, 1] on the 8-bit grid, labels int64 (N,).

`digits` is embedded (scikit-learn) and needs no file. The other names of LOADERS come through torchvision,
and any other from a folder with train/<class>/ and test/<class>/. The data root is the argument `root`, else the
variable REDBOOK_DATA, else `data/cache`.

One process holds one copy of a set: whoever asks again for the same images gets the same tensors, for as long as
somebody uses them. So they are not to be written on: `images.clone()` is.

    >>> held, judge = load("digits").halves()
    >>> held.images.shape, judge.first(2).labels.shape
    (torch.Size([248, 1, 16, 16]), torch.Size([2]))
"""

from __future__ import annotations

import hashlib
import operator
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from . import files
from .settings import shown

if TYPE_CHECKING:
    from PIL import Image

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
    """An image set in memory, shared by all who asked for it: its tensors are not to be written on.

    hash: names its content; equal hashes, equal tensors and class names.
    origin: the set that this one was copied from, where it is a copy on another device.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    hash: str
    origin: Dataset | None = field(default=None, repr=False, compare=False)

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
        """The same image set with its tensors on `device`; one copy for all who ask, as with `load`."""
        source, wanted = self.origin or self, torch.empty(0, device=device).device
        if source.train_images.device == wanted:
            return source
        names = ("train_images", "train_labels", "test_images", "test_labels")
        with _ALONE:
            # an id names one object as long as it lives, and a copy keeps what it was made of
            copy = _COPIES.get((id(source), wanted))
            if copy is None:
                moved = {name: getattr(source, name).to(wanted) for name in names}
                copy = _COPIES[id(source), wanted] = replace(source, **moved, origin=source)
        return copy


# What is in use somewhere, by what names its content; nothing here keeps anything alive.
_LOADED: WeakValueDictionary[tuple[Any, ...], Dataset] = WeakValueDictionary()
_COPIES: WeakValueDictionary[tuple[int, torch.device], Dataset] = WeakValueDictionary()
_ALONE = threading.RLock()  # threads that want the same set wait for it, and do not read it again


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

    The tensors are shared: a set that is still in use is not read again, unless its folder has changed. They are
    not to be written on.
    Raises DataError for an unknown name, a missing or damaged set, or a class that does not exist.
    """
    name, home = os.fspath(name) if isinstance(name, Path) else name, root_folder(root)
    if not isinstance(name, str) or not name:
        raise DataError(f"image set {shown(name)}: a name is needed, such as digits, or a folder")
    chosen = _whole_numbers("classes", classes)
    few, held = _whole_number("n_train", n_train), _whole_number("n_test", n_test)
    listed = None if name in LOADERS else _Listing.of(_find(name, home))
    key = (name, os.path.realpath(home), listed and listed.print, chosen, few, held)
    with _ALONE:
        known = _LOADED.get(key)
        if known is None:
            arrays = _named(name, home, download) if listed is None else _of_folder(listed, home)
            known = _LOADED[key] = _finish(name, _subset(name, arrays, chosen, few, held))
    return known


def _whole_number(what: str, value: Any) -> int | None:
    try:
        if isinstance(value, bool):
            raise TypeError
        return None if value is None else operator.index(value)
    except TypeError:
        raise DataError(f"{what} = {shown(value)}: a whole number is needed") from None


def _whole_numbers(what: str, values: Any) -> tuple[int, ...] | None:
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise DataError(f"{what} = {shown(values)}: a list of whole numbers is needed")
    return tuple(_whole_number(what, value) or 0 for value in values)


def _named(name: str, root: Path, download: bool) -> Arrays:
    try:
        return _checked(name, LOADERS[name](root, download))
    except DataError:
        raise
    except Exception as e:  # torchvision says RuntimeError of a missing set, and of a damaged one anything
        where = f"{name} is not under {root}, or not whole"
        raise DataError(f"{where}: pass download=True, or set REDBOOK_DATA to where it is ({_why(e)})") from e


def _why(error: BaseException) -> str:
    said = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _find(name: str, root: Path) -> Path:
    """The folder that `name` means: as a path, else under the data root."""
    for path in (Path(name), root / name):
        with suppress(OSError, ValueError):  # a name that no path can have
            if (path / "train").is_dir() and (path / "test").is_dir():
                return path
    raise DataError(
        f"no image set {shown(name)}: allowed are {', '.join(LOADERS)}, or a folder with train/ and test/"
        f" (looked in . and {root})"
    )


def _checked(name: str, arrays: Arrays) -> Arrays:
    """The same arrays. Raises DataError where they are no image set: both parts alike, every label a class."""
    x, y, u, z, classes = arrays
    for which, images, labels in (("train", x, y), ("test", u, z)):
        if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
            has = f"{images.dtype} images of shape {images.shape}"
            raise DataError(f"{name}: the {which} part has {has}; 8-bit ones, (N, C, H, W), are needed")
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            has = f"{len(images)} images and {labels.dtype} labels of shape {labels.shape}"
            raise DataError(f"{name}: the {which} part has {has}; a whole number for each image is needed")
        if labels.min() < 0 or labels.max() >= len(classes):
            has = f"labels from {labels.min()} to {labels.max()}"
            raise DataError(f"{name}: the {which} part has {has}; allowed are 0 to {len(classes) - 1}")
    if x.shape[1:] != u.shape[1:]:
        sizes = f"{x.shape[1:]} in the train part and {u.shape[1:]} in the test part"
        raise DataError(f"{name}: images (channels, rows, columns) are {sizes}; they must be alike")
    return arrays


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

    # Of MNIST's kind, files that old releases pickled are preferred to the raw ones: they are not to be read.
    raw = type(kind, (getattr(sets, kind),), {"_check_legacy_exist": lambda self: False})
    try:
        train, test = (raw(root, train=part, download=download) for part in (True, False))
    except RuntimeError as e:
        if (processed := root / kind / "processed").is_dir():
            why = "the pickled files in it are not read, for they can run code"
            raise DataError(
                f"{processed} alone is not enough: {why}; the raw files are needed ({_why(e)})"
            ) from e
        raise
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
    from PIL import Image
    from tqdm import tqdm

    pixels: list[np.ndarray] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for path, _ in tqdm(samples, desc="reading images", disable=len(samples) < 2000, leave=False):
            array = _pixels(path, size)
            if pixels and array.shape != pixels[0].shape:
                first = f"{samples[0][0]} {pixels[0].shape}"
                raise DataError(f"{path} has shape {array.shape}, {first}: all images must be alike")
            pixels.append(array)
    return np.stack(pixels), np.array([label for _, label in samples], dtype=np.int64)


# Pillow knows more, of which some start programs; these are what the endings below stand for
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
GREY, COLOUR = ("1", "L", "LA", "La"), ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


def _pixels(path: str, size: int | None) -> np.ndarray:
    """One image file as uint8 (C, H, W): one channel where it is grey, else three."""
    from PIL import Image

    if not os.path.isfile(path):  # a pipe would be waited for
        raise DataError(f"{path} is not a file: a link to nothing, a pipe or a device")
    try:
        with Image.open(path, formats=FORMATS) as file:
            image = _eight_bits(path, file)
            image = image.resize((size, size), Image.Resampling.BILINEAR) if size else image
            array = np.asarray(image)
    except DataError:
        raise
    except Exception as e:  # a damaged file can raise anything
        raise DataError(f"{path} is not a readable image: {_why(e)}") from e
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _eight_bits(path: str, image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, 16 bits scaled to 8. Raises DataError for what could be meant in two ways."""
    from PIL import Image

    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with its preview
        raise DataError(f"{path} holds {frames} images: one in each file is needed")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise DataError(f"{path} is transparent in places: put it on the ground that it is to have")
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})  # of a TIFF: bits of a sample, and whether 0 is white
        if tags.get(258, (16,)) == (16,) and tags.get(262, 1) == 1:
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in GREY + COLOUR:
        return image.convert("L" if image.mode in GREY else "RGB")
    raise DataError(
        f"{path} has mode {image.mode}, whose range is not in the file: 8 or 16 bits a channel are needed"
    )


class _Listing(NamedTuple):
    """The image files of a folder, before any is opened: (path, label) in the order of their names."""

    folder: Path
    classes: tuple[str, ...]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]
    print: str  # of names, sizes and times: a changed folder has another

    @classmethod
    def of(cls, folder: Path) -> _Listing:
        """Raises DataError for parts of other classes, one class alone, a class without images, folders in a circle."""
        seen: dict[str, str] = {}
        try:
            (train, train_classes), (test, test_classes) = (
                _part(folder / which, seen) for which in ("train", "test")
            )
            if train_classes != test_classes:
                both = f"train/ has classes {shown(train_classes)}, test/ has {shown(test_classes)}"
                odd = shown(sorted(set(train_classes) ^ set(test_classes)))
                raise DataError(f"{folder}: {both}; they must be the same ({odd} in one alone)")
            if len(train_classes) < 2:
                raise DataError(f"{folder} has classes {train_classes}: two or more are needed")
            here = len(os.path.join(folder, ""))
            listing = [
                (file[here:], known.st_size, known.st_mtime_ns, known.st_ctime_ns)
                for file, _ in train + test
                for known in [os.stat(file)]
            ]
        except OSError as e:
            raise DataError(f"image folder {folder}: {e.filename or ''} cannot be read: {e.strerror}") from e
        said = repr((READING, os.path.realpath(folder), listing))
        return cls(folder, tuple(train_classes), train, test, hashlib.sha256(said.encode()).hexdigest())


READING = 2  # raised when files come to be read in another way: tensors of the old way are then left alone


def _part(part: Path, seen: dict[str, str]) -> tuple[list[tuple[str, int]], list[str]]:
    """The files of train/ or test/ with their labels, and the names of its classes; hidden ones are left out.

    seen: the real folders that were read before, and by what names; each is to be read once.
    """
    entries = [entry for entry in os.scandir(part) if not entry.name.startswith(".")]
    if gone := [entry.path for entry in entries if entry.is_symlink() and not os.path.exists(entry.path)]:
        raise DataError(f"{gone[0]} is a link to nothing")
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    found: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        if not name.isprintable():
            raise DataError(f"{part} has a class named {name!r}: a name of characters that print is needed")
        before, folders = len(found), []
        for top, inner, inside in os.walk(part / name, followlinks=True, onerror=_fail):
            real = os.path.realpath(top)
            if real in seen:
                raise DataError(f"{top} is {seen[real]} again, by a link: its images would count twice")
            seen[real] = top
            inner[:] = [folder for folder in inner if not folder.startswith(".")]
            folders.append((top, inside))
        for top, inside in sorted(folders):
            named = (f for f in sorted(inside) if f.lower().endswith(ENDINGS) and not f.startswith("."))
            found += [(os.path.join(top, file), label) for file in named]
        if len(found) == before:
            raise DataError(f"{part / name} has no images: files that end in {', '.join(ENDINGS)} are needed")
    return found, classes


def _fail(error: OSError) -> None:
    raise error


def _of_folder(listed: _Listing, root: Path) -> Arrays:
    """A folder's images, decoded once: the tensors are kept under the data root, where it can be written."""
    kept = root / "tensors" / f"{listed.folder.resolve().name[:40]}-{listed.print[:16]}.safetensors"
    if os.path.lexists(kept):
        try:
            return _read_tensors(kept, listed)
        except (OSError, ValueError, KeyError, SafetensorError) as e:
            aside = kept.with_name(f"{kept.name}.corrupt-{time.time_ns()}")
            words = f"{kept} is damaged ({_why(e)}); it is put aside as {aside.name}, and the images are read again"
            warnings.warn(words, stacklevel=4)
            with suppress(OSError):
                os.replace(kept, aside)
    arrays = _checked(str(listed.folder), (*_decode(listed.train), *_decode(listed.test), listed.classes))
    try:
        _keep_tensors(kept, arrays)
    except OSError as e:
        why = f"{root} cannot be written ({e.strerror})"
        warnings.warn(
            f"{why}: {listed.folder} will be decoded each time; REDBOOK_DATA names another place",
            stacklevel=4,
        )
    return arrays


_PARTS = ("train_images", "train_labels", "test_images", "test_labels")


def _read_tensors(kept: Path, listed: _Listing) -> Arrays:
    if not kept.is_file():
        raise ValueError("not a file")
    with safe_open(kept, "pt") as file:
        # copies, because these tensors read the file as long as they live
        arrays = [file.get_tensor(name).clone().numpy() for name in _PARTS]
        recorded = (file.metadata() or {}).get("sha256")
    whole: Arrays = (*arrays, listed.classes)  # type: ignore[assignment]
    if _digest(whole) != recorded:
        raise ValueError("its content is not what was written")
    return _checked(str(kept), whole)


def _keep_tensors(kept: Path, arrays: Arrays) -> None:
    tensors = {name: torch.from_numpy(a).contiguous() for name, a in zip(_PARTS, arrays[:4], strict=True)}
    try:
        with files.written(kept) as partial:
            save_file(tensors, partial, {"sha256": _digest(arrays)})
    except SafetensorError as e:
        raise OSError(0, str(e)) from e


LOADERS: dict[str, Callable[[Path, bool], Arrays]] = {  # of the data root, and whether to download
    "digits": _digits,
    "mnist": partial(_in_memory, "MNIST"),
    "fashion-mnist": partial(_in_memory, "FashionMNIST"),
    "cifar10": partial(_in_memory, "CIFAR10"),
    "cifar100": partial(_in_memory, "CIFAR100"),
    "gtsrb": _gtsrb,
}


def _subset(
    name: str, arrays: Arrays, classes: tuple[int, ...] | None, n_train: int | None, n_test: int | None
) -> Arrays:
    parts, names = [arrays[:2], arrays[2:4]], arrays[4]
    if classes is not None:
        keep = list(classes)
        if len(set(keep)) < 2 or len(set(keep)) != len(keep) or not all(0 <= k < len(names) for k in keep):
            wanted = f"two or more different numbers from 0 to {len(names) - 1}"
            raise DataError(f"classes {shown(keep)} of {name}: allowed are {wanted}")
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
    x, y, u, z = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays[:4])
    digest = _digest(arrays)
    return Dataset(name, x.float().div_(255), y.long(), u.float().div_(255), z.long(), arrays[4], digest)


def _digest(arrays: Arrays) -> str:
    """Names the content: class names, shapes, and every value."""
    digest = hashlib.sha256(repr(arrays[4]).encode())
    for array in arrays[:4]:
        digest.update(repr((array.shape, array.dtype.name)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


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
