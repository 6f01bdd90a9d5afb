"""Image sets, networks, metrics: tensors as promised, and errors that name the thing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lib import data, metrics, models, train

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


def test_classes_are_renumbered_in_the_order_given():
    two = data.load("digits", classes=[7, 3])
    assert two.classes == ("7", "3") and set(two.train_labels.tolist()) == {0, 1}
    seven = digits.test_images[digits.test_labels == 7]
    assert torch.equal(two.test_images[two.test_labels == 0], seven)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(name="imagenet"), "allowed are digits"), (dict(name="digits", classes=[0]), "two or more"), (dict(name="digits", classes=[0, 10]), "0 to 9"),
        (dict(name="digits", n_train=5), "10 to 1300"), (dict(name="digits", n_test=498), "10 to 497"), (dict(name="mnist", root="/nowhere"), "REDBOOK_DATA"),
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


@pytest.mark.parametrize("name", models.NETWORKS)
def test_every_network_maps_images_to_logits(name):
    shape = (1, 28, 28) if name in ("lenet5", "nc-mnist", "usb-basic") else (3, 32, 32)
    net = models.build(name, n_classes=7, shape=shape).eval()
    x = torch.rand(2, *shape)
    assert net(x).shape == (2, 7) and torch.isfinite(net(x)).all()


def test_networks_are_drawn_from_their_seed_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    a, b, c = (models.build("small", n_classes=10, shape=(1, 16, 16), seed=s) for s in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    x = digits.test_images[:3]
    assert torch.equal(a(x), b(x)) and not torch.equal(a(x), c(x))


def test_normalisation_is_inside():
    net = models.build("small", n_classes=10, shape=(1, 16, 16), mean=[0.5], std=[0.25])
    x = digits.test_images[:2]
    assert torch.allclose(net(x), net[1]((x - 0.5) / 0.25), atol=1e-6)


def test_impossible_networks_are_named():
    with pytest.raises(ValueError, match="allowed are small"):
        models.build("resnet19", n_classes=2, shape=(1, 8, 8))
    with pytest.raises(ValueError, match="too small"):
        models.build("nc-mnist", n_classes=2, shape=(1, 4, 4))


@pytest.mark.parametrize(
    "bad", [dict(optimiser="adagrad"), dict(schedule="stairs"), dict(epochs=0), dict(lr=0.0)]
)
def test_impossible_recipes_are_named(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad)))):
        train.Recipe(**(dict(epochs=1, batch_size=8, lr=1e-3) | bad))
    with pytest.raises(ValueError, match="allowed are smoke"):
        train.recipe("slow")


def test_training_is_repeatable_and_learns():
    def run(seed):
        net = models.build("small", n_classes=10, shape=(1, 16, 16))
        return train.fit(
            net,
            digits.train_images,
            digits.train_labels,
            train.Recipe(epochs=3, batch_size=64, lr=5e-3),
            seed=seed,
        )

    a, b, c = run(0), run(0), run(1)
    x = digits.test_images
    assert torch.equal(a(x), b(x)) and not torch.equal(a(x), c(x))
    assert float(metrics.cta(models.predict(a, x), digits.test_labels)) > 0.8


def test_what_a_network_drops_is_drawn_from_the_seed():
    def run():
        net = models.build("mobilenetv2", n_classes=10, shape=(1, 32, 32), seed=0)
        x = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        how = train.Recipe(epochs=1, batch_size=8, lr=1e-3)
        return train.fit(net, x, torch.arange(16) % 10, how, seed=0).state_dict()

    state = torch.get_rng_state()
    first, second = run(), run()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws were used


def test_diverging_training_is_an_error():
    net = models.build("small", n_classes=10, shape=(1, 16, 16))
    with pytest.raises(RuntimeError, match="lower lr"):
        train.fit(
            net,
            digits.train_images,
            digits.train_labels,
            train.Recipe(epochs=3, batch_size=64, lr=1e12, optimiser="sgd"),
            seed=0,
        )


def test_augmentation_crops_and_flips_whole_images():
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(64, 1, 8, 8) / 64
    out = train._augment(x, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x[:1], [4] * 4, mode="reflect")[0, 0]
    windows = {
        tuple(w.flatten().tolist())
        for i in range(9)
        for j in range(9)
        for w in (padded[i : i + 8, j : j + 8], padded[i : i + 8, j : j + 8].flip(1))
    }
    assert {tuple(o.flatten().tolist()) for o in out} <= windows


@given(st.integers(0, 200), st.integers(0, 200))
def test_wilson_interval_holds_the_share_and_narrows(count, extra):
    total = count + extra
    low, high = metrics.Rate(count, total).interval
    assert 0 <= low <= high <= 1
    if total:
        assert low - 1e-9 <= count / total <= high + 1e-9
        wider = metrics.Rate(count, total, 0.99).interval
        assert wider[0] <= low + 1e-12 and wider[1] >= high - 1e-12


def test_target_images_never_count_as_successes():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    everything_to_two = torch.full_like(labels, 2)
    assert metrics.asr(everything_to_two, labels, 2).total == 4
    assert metrics.asr(everything_to_two, labels, 2, [0]).total == 2
    assert metrics.non_source_rate(everything_to_two, labels, 2, [0]).total == 2


@pytest.mark.parametrize(
    ("flags", "target", "case"),
    [
        ((1,), 1, "I"),
        ((1, 2), 1, "II"),
        ((2,), 1, "III"),
        ((2,), None, "III"),
        ((), 1, "IV"),
        ((), None, "IV"),
    ],
)
def test_cases(flags, target, case):
    assert metrics.case(flags, target) == case


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20)
)
def test_auc_is_the_chance_of_ranking_right(a, b):
    wins = sum((x > y) + 0.5 * (x == y) for x in a for y in b) / (len(a) * len(b))
    assert metrics.auc(torch.tensor(a), torch.tensor(b)) == pytest.approx(wins)


def test_collateral_damage_is_told_from_clean_confusion():
    labels = torch.tensor([0] * 100 + [1] * 100 + [2] * 50)
    clean, stamped = labels.clone(), labels.clone()
    clean[100:104] = 2
    stamped[100:104] = 2
    stamped[:30] = 2
    found = {c.label: c for c in metrics.collateral_damage(stamped, clean, labels, 2)}
    assert set(found) == {0, 1} and found[0].suffers() and not found[1].suffers()
    assert found[0].stamped.value == 0.3 and found[1].clean.count == 4
