"""Image sets: tensors as promised, one copy of them, and errors that name the thing."""

import gc
import hashlib
import os
import pickle
import struct
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib import attacks, data, detectors, train, zoo

digits = data.load("digits")


def test_digits_are_as_the_design_says():
    for x, y in ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels)):
        assert x.dtype == torch.float32 and y.dtype == torch.int64 and x.shape[1:] == (1, 16, 16)
        assert torch.allclose((x * 255).round() / 255, x) and x.min() >= 0 and x.max() <= 1
    assert len(digits.train_labels) == 1300 and len(digits.test_labels) == 497 and digits.n_classes == 10
    together = torch.cat([digits.train_images, digits.test_images]).flatten(1)
    assert len(together.unique(dim=0)) > 1790  # train and test do not share images


def test_the_hash_names_the_content():
    assert data.load("digits").hash == digits.hash
    assert (
        len({digits.hash, data.load("digits", n_train=100).hash, data.load("digits", classes=[1, 0]).hash})
        == 3
    )


def test_digits_are_the_same_today_as_when_the_tables_were_made():
    assert digits.hash == "2c6d9391d38880063a4c09cfcd8aba1a50d249653e04248c5f4cddf2f1784e36"


def test_classes_are_renumbered_in_the_order_given():
    two = data.load("digits", classes=[7, 3])
    assert two.classes == ("7", "3") and set(two.train_labels.tolist()) == {0, 1}
    seven = digits.test_images[digits.test_labels == 7]
    assert torch.equal(two.test_images[two.test_labels == 0], seven)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(name="imagenet"), "allowed are digits, mnist"), (dict(name="digits", classes=[0]), "two or more"), (dict(name="digits", classes=[0, 10]), "0 to 9"),
        (dict(name="digits", n_train=5), "10 to 1300"), (dict(name="digits", n_test=498), "10 to 497"),
        (dict(name="digits", n_train=100.5), "n_train = 100.5: a whole number"), (dict(name="digits", n_train="100"), "n_train = '100'"),
        (dict(name="digits", n_test=True), "n_test = True"), (dict(name="digits", n_train=10**30), "10 to 1300"),
        (dict(name="digits", classes=[0.5, 1.5]), "classes = 0.5"), (dict(name="digits", classes=[True, False]), "classes = True"),
        (dict(name="digits", classes="01"), "classes = '01'"), (dict(name="digits", classes=3), "classes = 3"),
        (dict(name="digits", classes=[1, 1]), "two or more different"), (dict(name="digits", classes=[-1, 0]), "0 to 9"),
        (dict(name=""), "image set ''"), (dict(name=5), "image set 5"), (dict(name=None), "image set None"),
        (dict(name="x" * 5000), "no image set 'xxx"), (dict(name="a\0b"), "no image set"),
        (dict(name="mnist", root="/nowhere"), "mnist is not under /nowhere.*REDBOOK_DATA"), (dict(name="gtsrb", root="/nowhere"), "gtsrb is not under"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_named(settings, message):
    with pytest.raises(data.DataError, match=message):
        data.load(**settings)


def folder_of_images(root, size=(8, 6)):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
                    root / part / name / f"{i}.png"
                )
    return root


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """An image folder with train/ and test/ of cats and dogs, and a data root of its own."""
    monkeypatch.setenv("REDBOOK_DATA", str(tmp_path / "root"))
    return folder_of_images(tmp_path / "pets")


def test_a_folder_of_images(pets):
    first, again = data.load(str(pets)), data.load(str(pets))
    assert first.classes == ("cat", "dog") and first.shape == (3, 8, 6) and first.hash == again.hash
    pixel = np.asarray(Image.open(pets / "train" / "cat" / "0.png"))[2, 3]
    assert torch.allclose(first.train_images[0, :, 2, 3] * 255, torch.tensor(pixel).float())


def test_a_changed_folder_is_read_again(pets):
    before = data.load(str(pets))
    Image.new("RGB", (6, 8), "white").save(pets / "train" / "cat" / "0.png")
    after = data.load(str(pets))
    assert after.hash != before.hash and float(after.train_images[0].min()) == 1


def test_a_folder_kept_as_tensors_is_the_folder_decoded(pets):
    first = data.load(str(pets))
    decoded, of = [x.clone() for x in (*first.train, *first.test)], first.hash
    del first
    gc.collect()
    again = data.load(str(pets))
    assert again.hash == of and all(map(torch.equal, (*again.train, *again.test), decoded))


def content(images):
    """A hash of every value, unlike Dataset.hash taken anew."""
    digest = hashlib.sha256()
    for x in (*images.train, *images.test):
        digest.update(x.numpy().tobytes())
    return digest.hexdigest()


def test_one_process_holds_one_copy_of_a_set(pets):
    for name, subset in (("digits", {}), ("digits", {"classes": (1, 7), "n_train": 50}), (str(pets), {})):
        first, again = data.load(name, **subset), data.load(name, **subset)
        assert first is again and first.train_images.data_ptr() == again.train_images.data_ptr()
    assert data.load("digits") is data.load("digits", n_train=None) is not data.load("digits", n_train=1300)


@pytest.mark.long
def test_a_set_that_nobody_uses_is_freed(pets):
    images = data.load(str(pets))
    away, seen = images.to("meta"), [weakref.ref(images.train_images)]
    seen.append(weakref.ref(away))
    del images
    gc.collect()
    assert seen[0]() is not None  # the copy keeps what it was made of, so that the next load finds it
    assert data.load(str(pets)).to("meta") is away
    del away
    gc.collect()
    assert [one() for one in seen] == [None, None]


def test_a_copy_on_a_device_is_shared_and_leads_back():
    away = digits.to("meta")
    assert away is digits.to(torch.device("meta")) and away.to("meta") is away
    assert away.to("cpu") is digits is digits.to("cpu")
    other = data.load("digits", n_train=100)
    assert len(other.to("meta").train_labels) == 100 and other.to("meta") is not away


def test_many_classifiers_of_one_set_share_it(tmp_path):
    quick = zoo.Spec(recipe=train.Recipe(epochs=1, batch_size=128, lr=1e-2), n_train=100)
    made = [zoo.get(quick, seed=seed, zoo=tmp_path) for seed in range(3)]
    assert len({c.dataset.train_images.data_ptr() for c in made}) == 1


@pytest.mark.long
def test_nothing_writes_on_the_shared_tensors(tmp_path):
    """Poisoning, training, evaluating and scanning, by attacks of every way of making a trigger."""
    images, recipe = (
        data.load("digits", n_train=400),
        train.Recipe(epochs=1, batch_size=128, lr=1e-2, augment=True),
    )
    before = content(images)
    for attack in (
        attacks.group("G-3", "digits"), attacks.BadNets(target=1, rate=0.1), attacks.LabelConsistent(target=1, rate=0.02, steps=2),
        attacks.InputAware(target=1, epochs=1, mask_epochs=1), attacks.Trojan(target=1, per_source=5, epochs=1, steps=2),
    ):  # fmt: skip
        c = zoo.get(zoo.Spec(attack=attack, recipe=recipe, n_train=400), zoo=tmp_path)
        c.evaluate()
    known = c.dataset.test_labels  # an oracle has correctly classified images of every class, trained or not
    clean = data.clean_per_class(lambda x: known, *images.test, 1, n_classes=10, generator=torch.Generator())
    for detector in (
        detectors.URED(max_steps=3),
        detectors.NeuralCleanse(max_rounds=2),
        detectors.USB(max_rounds=2, passes=1),
    ):
        detector.scan(c.model, clean)
    assert c.dataset is images and content(images) == before


def png(path, array):
    Image.fromarray(array).save(path)


def write(name):
    return lambda pets: pets.joinpath("train", "cat", "1.png").write_bytes(name)


def regrey(pets):
    for file in pets.glob("test/*/*.png"):
        png(file, np.zeros((8, 6), np.uint8))


def resize(pets):
    for file in pets.glob("test/*/*.png"):
        png(file, np.zeros((4, 4, 3), np.uint8))


def remove(pattern):
    return lambda pets: [file.unlink() for file in pets.glob(pattern)]


def one_class(pets):
    for part in ("train", "test"):
        for file in (pets / part / "dog").iterdir():
            file.unlink()
        (pets / part / "dog").rmdir()


def see_through(pets):
    Image.new("RGBA", (6, 8), (1, 2, 3, 128)).save(pets / "train" / "cat" / "1.png")


def frames(pets):
    two = [Image.new("RGB", (6, 8), colour) for colour in ("red", "blue")]
    two[0].save(pets / "train" / "cat" / "1.tiff", save_all=True, append_images=two[1:])


def bomb(pets):
    """A few bytes that say of themselves that they are 40,000 x 40,000 pixels."""
    (pets / "train" / "cat" / "1.ppm").write_bytes(b"P6 40000 40000 255\n" + bytes(3))


def float_tiff(pets):
    Image.fromarray(np.full((8, 6), 0.5, np.float32)).save(pets / "train" / "cat" / "1.tif")


def int_tiff(pets):
    Image.fromarray(np.full((8, 6), 70_000, np.int32)).save(pets / "train" / "cat" / "1.tif")


BAD_FOLDERS = {
    "a file of nothing": (write(b""), ["train/cat/1.png", "not a readable image"]),
    "a file of words": (write(b"nothing"), ["train/cat/1.png", "not a readable image"]),
    "half a file": (lambda p: os.truncate(p / "train" / "cat" / "1.png", 60), ["train/cat/1.png"]),
    "a bomb": (bomb, ["train/cat/1.ppm", "decompression bomb"]),
    "a GIF by another name": (lambda p: Image.new("P", (6, 8)).save(p / "train" / "cat" / "1.png", format="GIF"), ["train/cat/1.png", "not a readable image"]),
    "PostScript, which starts a program": (write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n"), ["train/cat/1.png"]),
    "an image of another size": (
        lambda p: png(p / "train" / "cat" / "1.png", np.zeros((5, 5, 3), np.uint8)), ["train/cat/1.png", "(3, 5, 5)", "train/cat/0.png", "(3, 8, 6)"],
    ),
    "a grey one among them": (lambda p: png(p / "train" / "cat" / "1.png", np.zeros((8, 6), np.uint8)), ["train/cat/1.png", "(1, 8, 6)"]),
    "a grey test part": (regrey, ["pets", "(3, 8, 6) in the train part", "(1, 8, 6) in the test part"]),
    "a test part of another size": (resize, ["(3, 8, 6) in the train part", "(3, 4, 4) in the test part"]),
    "floats": (float_tiff, ["train/cat/1.tif", "mode F", "8 or 16 bits"]),
    "32 bits": (int_tiff, ["train/cat/1.tif", "mode I", "8 or 16 bits"]),
    "something seen through": (see_through, ["train/cat/1.png", "transparent"]),
    "two images in one file": (frames, ["train/cat/1.tiff", "2 images"]),
    "another class": (lambda p: (p / "test" / "dog").rename(p / "test" / "wolf"), ["'cat', 'dog'", "'cat', 'wolf'", "must be the same"]),
    "one class": (one_class, ["['cat']", "two or more"]),
    "a class without images": (remove("train/dog/*"), ["train/dog has no images", ".png"]),
    "no part train/": (lambda p: (p / "train").rename(p / "training"), ["no image set", "train/ and test/"]),
    "a pipe": (lambda p: os.mkfifo(p / "train" / "cat" / "3.png"), ["3.png is not a file"]),
    "a device": (lambda p: (p / "train" / "cat" / "3.png").symlink_to("/dev/zero"), ["3.png is not a file"]),
    "a link to nothing": (lambda p: (p / "train" / "cat" / "3.png").symlink_to("nowhere"), ["3.png cannot be read"]),
    "a link in a circle": (lambda p: (p / "train" / "cat" / "again").symlink_to("."), ["cat/again is", "count twice"]),
    "two links in a circle": (
        lambda p: [(p / "train" / "cat" / name).symlink_to(".") for name in "ab"], ["count twice"],
    ),
    "a class that is a link to nothing": (lambda p: (p / "train" / "wolf").symlink_to("nowhere"), ["train/wolf is a link to nothing"]),
    "test images among those for training": (lambda p: (p / "train" / "cat" / "more").symlink_to("../../test/cat"), ["test/cat is", "cat/more again"]),
    "a class that is another's folder": (lambda p: (p / "train" / "cat" / "d").symlink_to("../dog"), ["count twice"]),
    "a link to itself": (lambda p: (p / "train" / "cat" / "3.png").symlink_to("3.png"), ["3.png cannot be read"]),
    "a name with an escape": (lambda p: [(p / part / "dog").rename(p / part / "\x1b[31mdog") for part in ("train", "test")], [r"\x1b[31mdog", "print"]),
    "a name that is no UTF-8": (lambda p: [os.rename(p / part / "dog", os.fsencode(p / part) + b"/d\xff") for part in ("train", "test")], ["print"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_bad_folder_is_refused_by_name(pets, kind):
    spoil, words = BAD_FOLDERS[kind]
    spoil(pets)
    with pytest.raises(data.DataError) as refused:
        data.load(str(pets))
    said = str(refused.value)
    assert len(said.splitlines()) == 1 and all(word in said for word in words), said
    assert not list((pets.parent / "root").rglob("*.safetensors"))


def test_an_image_says_the_same_in_every_mode_that_can_hold_it(pets):
    """16 bits, palettes, black and white, full opacity: the same pixels as in 8-bit grey or colour."""
    grey = np.arange(48, dtype=np.uint8).reshape(8, 6) * 5
    for part, label, i in ((p, c, i) for p in ("train", "test") for c in ("cat", "dog") for i in range(3)):
        file = pets / part / label / f"{i}.png"
        file.unlink()
        made = (
            Image.fromarray(grey.astype(np.uint16) * 256 + 255 - grey),
            Image.fromarray(grey),
            Image.fromarray(grey).convert("LA"),
        )
        made[i].save(file.with_suffix(".tif") if i == 0 and part == "test" else file)
    read = data.load(str(pets))
    assert read.shape == (1, 8, 6)
    for x in (*read.train_images, *read.test_images):
        assert torch.equal((x[0] * 255).round().byte(), torch.from_numpy(grey))


def test_links_to_folders_and_hidden_files_are_no_fault(pets):
    (pets / "train" / "cat").rename(pets / "cats")
    (pets / "train" / "cat").symlink_to("../cats")
    (pets / "train" / ".ipynb_checkpoints").mkdir()
    (pets / "train" / "dog" / "._0.png").write_bytes(b"of a file browser")
    (pets / "train" / "dog" / "notes.txt").write_text("left out")
    assert len(data.load(str(pets)).train_labels) == 6


DAMAGE = {
    "cut short": lambda file: os.truncate(file, 200),
    "empty": lambda file: file.write_bytes(b""),
    "no safetensors": lambda file: file.write_bytes(b"\xff" * 400),
    "without labels": lambda file: save_file({"train_images": torch.zeros(2, dtype=torch.uint8)}, file),
    "other values": lambda file: save_file({k: v.flip(0) for k, v in load_file(file).items()}, file),
    "floats": lambda file: save_file({k: v.float() for k, v in load_file(file).items()}, file),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.long
def test_damaged_tensors_are_put_aside_and_the_images_read_again(pets, damage):
    of = data.load(str(pets)).hash
    gc.collect()
    [kept] = (pets.parent / "root" / "tensors").glob("*.safetensors")
    DAMAGE[damage](kept)
    with pytest.warns(UserWarning, match=r"is damaged.*put aside"):
        assert data.load(str(pets)).hash == of
    assert kept.is_file() and len(list(kept.parent.glob("*.corrupt-*"))) == 1
    gc.collect()
    assert data.load(str(pets)).hash == of  # quietly


def test_a_folder_can_be_used_where_nothing_can_be_kept(pets, monkeypatch):
    (pets.parent / "a_file").write_text("no folder")
    monkeypatch.setenv("REDBOOK_DATA", str(pets.parent / "a_file"))
    with pytest.warns(UserWarning, match=r"a_file cannot be written.*REDBOOK_DATA"):
        assert len(data.load(str(pets)).train_labels) == 6


def idx(root, *, images=(5, 28, 28), labels=5, top=9):
    """MNIST's four raw files, of blank digits."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        head = struct.pack(">IIII", 0x803, *images)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + bytes(int(np.prod(images))))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, labels) + bytes([top] * labels)
        )
    return raw


def test_mnist_from_its_raw_files(tmp_path):
    idx(tmp_path)
    assert data.load("mnist", root=tmp_path).shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(b"\xff" * 40), "not whole"),
        (lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(b""), "not whole"),
        (lambda raw: os.truncate(raw / "t10k-images-idx3-ubyte", 500), "not whole"),
        (lambda raw: (raw / "train-labels-idx1-ubyte").unlink(), "not under"),
        (lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 4) + bytes(4)), "5 images and int64 labels"),
        (lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 5) + bytes([77] * 5)), "labels from 77 to 77"),
        (lambda raw: (raw / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 5, 7, 7) + bytes(245)), "(1, 7, 7) in the test part"),
    ],
)  # fmt: skip
def test_junk_in_the_files_of_mnist_is_said_in_a_line(tmp_path, spoil, words):
    spoil(idx(tmp_path))
    with pytest.raises(data.DataError) as refused:
        data.load("mnist", root=tmp_path)
    assert (
        "mnist" in str(refused.value)
        and words in str(refused.value)
        and len(str(refused.value).splitlines()) == 1
    )


class Payload:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("raw", [True, False])
def test_pickled_files_of_old_releases_are_not_read(tmp_path, raw):
    if raw:
        idx(tmp_path)
    processed = tmp_path / "MNIST" / "processed"
    processed.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        (processed / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    if raw:
        assert len(data.load("mnist", root=tmp_path).train_labels) == 5
    else:
        with pytest.raises(data.DataError, match=r"MNIST/processed alone.*not read.*raw files are needed"):
            data.load("mnist", root=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_clean_images_are_right_and_of_their_class():
    wrong = torch.arange(len(digits.test_labels)) % 3 == 0
    said = torch.where(wrong, (digits.test_labels + 1) % 10, digits.test_labels)
    drawn = data.clean_per_class(
        lambda x: said, digits.test_images, digits.test_labels, 4, n_classes=10, generator=torch.Generator()
    )
    assert drawn.shape == (10, 4, 1, 16, 16)
    for k in range(10):
        allowed = digits.test_images[(digits.test_labels == k) & ~wrong].flatten(1)
        assert all((allowed == x.flatten()).all(1).any() for x in drawn[k])


def test_too_few_clean_images_name_the_class():
    with pytest.raises(data.DataError, match="class 0 has 0"):
        data.clean_per_class(
            lambda x: digits.test_labels.clamp_min(1),
            digits.test_images,
            digits.test_labels,
            4,
            n_classes=10,
            generator=torch.Generator(),
        )


def test_the_defender_and_the_judge_share_the_test_images():
    held, judge = digits.halves()
    assert len(held.labels) == 248 and len(judge.labels) == 249
    assert torch.equal(torch.cat([held.images, judge.images]), digits.test_images)
    assert torch.equal(torch.cat([held.labels, judge.labels]), digits.test_labels)


def test_images_keep_their_labels():
    images, labels = digits.train  # unpacks like the pair it is
    assert images is digits.train_images and labels is digits.train_labels
    few, three = digits.test.first(5), digits.test.of(3)
    assert len(few.images) == len(few.labels) == 5 and torch.equal(few.images, digits.test_images[:5])
    assert set(three.labels.tolist()) == {3} and len(three.images) == int((digits.test_labels == 3).sum())
    rest, mask = digits.test.away(3), digits.test_labels > 7
    assert len(rest.labels) + len(three.labels) == len(digits.test_labels) and 3 not in rest.labels
    assert torch.equal(digits.test.of(mask).images, digits.test_images[mask])


def test_a_set_goes_to_a_device_whole():
    away = digits.to("meta")
    assert all(x.is_meta for x in (*away.train, *away.test)) and away.hash == digits.hash
    assert not digits.train_images.is_meta
