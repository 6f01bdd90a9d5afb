"""Image sets: tensors as promised, the same for every call, and errors that name the thing."""

import numpy as np
import pytest
import torch
from PIL import Image

from lib import data

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


def test_a_folder_of_images(tmp_path, monkeypatch):
    monkeypatch.setenv("REDBOOK_DATA", str(tmp_path / "root"))
    path = folder_of_images(tmp_path / "pets")
    first, again = data.load(str(path)), data.load(str(path))
    assert first.classes == ("cat", "dog") and first.shape == (3, 8, 6) and first.hash == again.hash
    pixel = np.asarray(Image.open(path / "train" / "cat" / "0.png"))[2, 3]
    assert torch.allclose(first.train_images[0, :, 2, 3] * 255, torch.tensor(pixel).float())


def test_a_changed_folder_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("REDBOOK_DATA", str(tmp_path / "root"))
    path = folder_of_images(tmp_path / "pets")
    before = data.load(str(path)).hash
    Image.new("RGB", (6, 8), "white").save(path / "train" / "cat" / "0.png")
    assert data.load(str(path)).hash != before


@pytest.mark.parametrize("damage", ["size", "bytes", "classes"])
def test_a_bad_folder_is_named(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("REDBOOK_DATA", str(tmp_path / "root"))
    path = folder_of_images(tmp_path / "pets")
    bad = path / "train" / "cat" / "1.png"
    if damage == "size":
        Image.new("RGB", (5, 5)).save(bad)
    elif damage == "bytes":
        bad.write_bytes(b"nothing")
    else:
        (path / "test" / "dog").rename(path / "test" / "wolf")
    with pytest.raises(data.DataError, match="wolf" if damage == "classes" else "1.png"):
        data.load(str(path))
    assert not list((tmp_path / "root").rglob("*.safetensors"))


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
