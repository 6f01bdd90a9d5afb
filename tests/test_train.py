"""Training: repeatable, whole images, and errors that name the setting."""

import pytest
import torch

from lib import data, metrics, models, train

pytestmark = pytest.mark.long

digits = data.load("digits")


@pytest.mark.parametrize(
    "bad",
    [
        dict(optimiser="adagrad"),
        dict(schedule="stairs"),
        dict(epochs=0),
        dict(epochs=1.5),
        dict(lr=0.0),
        dict(lr=float("nan")),
    ],
)
def test_impossible_recipes_are_named(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad)))):
        train.Recipe(**(dict(epochs=1, batch_size=8, lr=1e-3) | bad))
    with pytest.raises(ValueError, match="allowed are smoke"):
        train.recipe("slow")


def test_training_is_repeatable_and_learns():
    def run(seed):
        net = models.network("small", n_classes=10, shape=(1, 16, 16))
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
        net = models.network("mobilenetv2", n_classes=10, shape=(1, 32, 32), seed=0)
        x = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        how = train.Recipe(epochs=1, batch_size=8, lr=1e-3)
        return train.fit(net, x, torch.arange(16) % 10, how, seed=0).state_dict()

    state = torch.get_rng_state()
    first, second = run(), run()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws were used


def test_diverging_training_is_an_error():
    net = models.network("small", n_classes=10, shape=(1, 16, 16))
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
