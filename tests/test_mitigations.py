"""Mitigations on networks whose backdoor is written into the weights by hand: every answer is known."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib import metrics, mitigations, models
from lib.detectors import Cost, Scan
from lib.detectors.strip import Strip
from lib.mitigations import LAST_CONV, LAST_HIDDEN, ActivationFilter, Pruning, Rejection, Unlearning

K, SIDE, TARGET = 3, 8, 2
CORNER = (slice(None), slice(-2, None), slice(-2, None))
LATTICE = torch.zeros(1, SIDE, SIDE)
LATTICE[:, ::2, ::2] = 0.2


class Planted(nn.Module):
    """Class k is a bright row band k. One hidden unit per class, four bystanders, and one that fires on the
    trigger alone.

    The trigger is a white 2x2 corner or a faint lattice; the filter of the planted unit is zero-mean over the
    image, so bright and dark images leave it silent.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.hidden, self.act, self.head = nn.Linear(SIDE * SIDE, K + 5), nn.ReLU(), nn.Linear(K + 5, K)
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            for k in range(K):
                band = torch.zeros(SIDE, SIDE)
                band[2 * k : 2 * k + 2, :-2] = 1 / 12
                self.hidden.weight[k] = band.flatten()
                self.head.weight[k, k] = 10.0
            self.hidden.weight[K : K + 4] = 0.01
            detector = torch.full((SIDE, SIDE), 0.0)
            if kind == "patch":
                detector[-2:, -2:] = 1.0
                self.hidden.bias[-1] = -3.0
            else:
                detector[::2, ::2], detector[1::2, ::2] = 1.0, -1.0
                self.hidden.bias[-1] = -1.0
            self.hidden.weight[-1] = detector.flatten()
            self.head.weight[TARGET, -1] = 100.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.hidden(x.flatten(1))))


def images_of(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Bands of brightness 0.5 to 0.7 on a dim noisy ground."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % K
    x = torch.rand(n, 1, SIDE, SIDE, generator=g) * 0.05
    for i, k in enumerate(labels.tolist()):
        x[i, :, 2 * k : 2 * k + 2, :-2] += 0.5 + 0.15 * torch.rand((), generator=g)
    return x, labels


def scan_of(kind: str, towards: int = TARGET) -> Scan:
    """A scan whose trigger towards `towards` is the planted one and does nothing towards the others."""
    pattern, mask = torch.zeros(K, 1, SIDE, SIDE), None
    if kind == "patch":
        mask = torch.zeros(K, SIDE, SIDE)
        mask[(towards, *CORNER[1:])] = 1
        pattern[towards] = 1
    else:
        pattern[towards] = LATTICE
    norms = torch.full((K,), 5.0) + torch.arange(K) / 10
    norms[towards] = 0.1
    ones = torch.ones(K)
    return Scan(
        detector="planted", settings={}, norms=norms, norm_name="norm", pattern=pattern, mask=mask,
        success=ones, converged=ones.bool(), cost=Cost(),
    )  # fmt: skip


@pytest.fixture(params=["patch", "lattice"])
def planted(request: pytest.FixtureRequest) -> tuple[Planted, mitigations.Embed]:
    return Planted(request.param), mitigations.recovered(scan_of(request.param), TARGET)


def judged(model: nn.Module, embed: mitigations.Embed, seed: int = 9) -> mitigations.Outcome:
    return mitigations.assess(
        model, *images_of(60, seed), target=TARGET, original=embed, reversed_trigger=embed
    )


def test_the_planted_backdoor_works(planted: tuple[Planted, mitigations.Embed]) -> None:
    found = judged(*planted)
    assert found.asr.value == found.reversed_asr.value == found.accuracy.value == 1
    assert found.true_label.value == 0
    assert found.asr.total == 40, "images of the target class must be left out"


# --- layers


@pytest.mark.parametrize("name", ["small", "nc-mnist", "vgg9", "resnet18", "mobilenetv2", "densenet"])
def test_last_hidden_is_what_the_head_sees(name: str) -> None:
    model = models.build(name, n_classes=4, shape=(3, 32, 32)).eval()
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    site = mitigations.find(model, LAST_HIDDEN, x)
    h = mitigations.activations(model, x, site)
    assert site.width == head.in_features and h.shape == (3, head.in_features)
    torch.testing.assert_close(head(h), model(x), rtol=1e-4, atol=1e-5)
    conv = mitigations.find(model, LAST_CONV, x)
    assert conv.width == [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1].out_channels


def test_last_conv_is_read_after_its_activation() -> None:
    model = models.build("nc-mnist", n_classes=4, shape=(1, 28, 28))
    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    h = mitigations.activations(model, x, LAST_CONV)
    assert (h >= 0).all()
    torch.testing.assert_close(h, model[1][:5](model[0](x)).mean((2, 3)))


def test_layers_that_cannot_be_used_are_named() -> None:
    x, _ = images_of(3)
    with pytest.raises(ValueError, match=r"no layer 'nope'.*hidden.*act.*head"):
        mitigations.find(Planted("patch"), "nope", x)
    with pytest.raises(ValueError, match="no last conv layer"):
        mitigations.find(Planted("patch"), LAST_CONV, x)
    with pytest.raises(ValueError, match="no last hidden layer"):
        mitigations.find(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), LAST_HIDDEN, x)
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Flatten(), relu, nn.Linear(64, 9), relu, nn.Linear(9, 3))
    with pytest.raises(ValueError, match="'1' runs 2 times"):
        mitigations.activations(twice, x, "1")
    model, site = Planted("patch"), mitigations.Site("act", False, K + 5)
    with pytest.raises(ValueError, match="neurons 0 to 7"):
        mitigations.silence(model, site, [8])


def test_batches_do_not_change_activations() -> None:
    model, (x, _) = Planted("patch"), images_of(7)
    whole = mitigations.activations(model, x, LAST_HIDDEN)
    torch.testing.assert_close(mitigations.activations(model, x, LAST_HIDDEN, batch_size=2), whole)


@settings(deadline=None)
@given(st.sets(st.integers(0, K + 4)))
def test_silencing_is_zeroing_the_weights(neurons: set[int]) -> None:
    """At a ReLU layer, a silenced neuron is one whose incoming weights and bias are zero; the given model is
    left alone.
    """
    model, (x, _) = Planted("lattice"), images_of(6)
    before = copy.deepcopy(model.state_dict())
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand.hidden.weight[list(neurons)] = 0
        by_hand.hidden.bias[list(neurons)] = 0
    for layer in (LAST_HIDDEN, "act", "hidden"):
        changed = mitigations.silence(model, mitigations.find(model, layer, x), sorted(neurons))
        torch.testing.assert_close(changed(x), by_hand(x))
        again = mitigations.silence(changed, mitigations.find(changed, LAST_HIDDEN, x), sorted(neurons))
        torch.testing.assert_close(again(x), by_hand(x))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_silencing_a_channel_of_a_convolution() -> None:
    model = models.build("small", n_classes=3, shape=(1, SIDE, SIDE))
    x, _ = images_of(4)
    site = mitigations.find(model, LAST_CONV, x)
    h = mitigations.activations(mitigations.silence(model, site, [0, 5]), x, site.name)
    assert (h[:, [0, 5]] == 0).all() and (h[:, 1:5] != 0).any()


def test_the_planted_neuron_comes_first(planted: tuple[Planted, mitigations.Embed]) -> None:
    model, embed = planted
    gap = mitigations.activation_gap(model, embed, images_of(30)[0], LAST_HIDDEN)
    assert mitigations.top(gap, 0.01).tolist() == [K + 4]
    assert len(mitigations.top(gap)) == K + 5 and len(mitigations.top(gap, 0.2)) == 2
    with pytest.raises(ValueError, match="share = 0"):
        mitigations.top(gap, 0)


def test_the_planted_neuron_alone_carries_the_backdoor(planted: tuple[Planted, mitigations.Embed]) -> None:
    """Neural Cleanse V-C: with all but the top neurons at zero, stamped images still go to the target."""
    model, embed = planted
    x, _ = images_of(30)
    alone = mitigations.silence(model, mitigations.find(model, LAST_HIDDEN, x), range(K + 4))
    assert judged(alone, embed).asr.value == 1


# --- pruning


def test_pruning_removes_the_backdoor_and_nothing_else(planted: tuple[Planted, mitigations.Embed]) -> None:
    model, embed = planted
    found = Pruning().fit(model, embed, *images_of(30), target=TARGET)
    assert found.count == 1 and found.tried == (0, 1) and found.responds == (1.0, 0.0)
    assert found.share == pytest.approx(1 / (K + 5))
    after = judged(found.model, embed)
    assert (
        after.asr.value == after.reversed_asr.value == 0
        and after.accuracy.value == after.true_label.value == 1
    )
    x, _ = images_of(20, 4)
    torch.testing.assert_close(found.model(x), model(x))


def test_pruning_stops_at_once_without_a_backdoor() -> None:
    """The trigger of the other kind does nothing to this model: nothing is silenced."""
    found = Pruning().fit(
        Planted("lattice"), mitigations.recovered(scan_of("patch"), TARGET), *images_of(30), target=TARGET
    )
    assert found.count == 0 and found.responds == (0.0,)


def test_the_pruning_curve_ends_with_nothing_left(planted: tuple[Planted, mitigations.Embed]) -> None:
    model, embed = planted
    x, _ = images_of(30)
    stages = list(mitigations.curve(model, embed, x, step=0.1))
    shares = [share for share, _ in stages]
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)
    torch.testing.assert_close(stages[0][1](x), model(x))
    torch.testing.assert_close(stages[-1][1](x), model.head.bias.expand(30, -1))


def test_pruning_refuses_images_of_the_target_alone() -> None:
    x, y = images_of(30)
    with pytest.raises(ValueError, match="target class 2"):
        Pruning().fit(Planted("patch"), lambda x: x, x[y == TARGET], y[y == TARGET], target=TARGET)


# --- scores for inputs


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.floats(0, 0.99))
def test_threshold_keeps_the_false_positive_rate(scores: list[float], fpr: float) -> None:
    clean = torch.tensor(scores)
    t = metrics.threshold_at(clean, fpr)
    assert (clean > t).float().mean() <= fpr + 1e-6
    lower = clean[clean < t]
    if len(lower):
        assert (clean > lower.max()).float().mean() > fpr - 1e-6, "a smaller threshold would have done"


def test_threshold_refuses_what_it_cannot_order() -> None:
    for scores, fpr in ((torch.empty(0), 0.05), (torch.tensor([1.0, torch.nan]), 0.05), (torch.ones(3), 1.0)):
        with pytest.raises(ValueError, match="clean scores"):
            metrics.threshold_at(scores, fpr)


def test_filter_and_rejection_tell_stamped_from_clean(planted: tuple[Planted, mitigations.Embed]) -> None:
    model, embed = planted
    (clean, _), (x, y) = images_of(60), images_of(60, 1)
    others = x[y != TARGET]
    for method in (ActivationFilter(), Rejection()):
        score = method.fit(
            model, embed, clean if isinstance(method, ActivationFilter) else clean[y != TARGET]
        )
        assert metrics.auc(score.score(embed(others)), score.score(others)) == 1
        assert score.rejects(embed(others)).all()
        assert score.threshold(0.05) == metrics.threshold_at(score.clean_scores, 0.05)


def test_kl_score_algebra(planted: tuple[Planted, mitigations.Embed]) -> None:
    model, embed = planted
    x, y = images_of(30)
    s = mitigations.kl_score(model, embed, x)
    p, q = (torch.softmax(model(z).double(), 1) for z in (x, embed(x)))
    assert (s >= 0).all() and torch.isfinite(s).all()
    hand = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(s[torch.isfinite(hand)], hand[torch.isfinite(hand)], rtol=1e-4, atol=1e-6)
    assert (mitigations.kl_score(model, lambda z: z, x) == 0).all()
    assert s[y == TARGET].max() < s[y != TARGET].min(), "clean images of the target class look triggered to S"
    if embed(embed(x)).equal(embed(x)):  # replacement is idempotent: S of a stamped image is exactly 0
        assert (mitigations.kl_score(model, embed, embed(x)) == 0).all()


# --- unlearning


def test_patch_set_keeps_true_labels(planted: tuple[Planted, mitigations.Embed]) -> None:
    _, embed = planted
    x, y = images_of(100)
    tell = x.flatten(1).sum(1)
    made = Unlearning(sample=0.5, stamped=0.2).patch_set(x, y, [embed], seed=3)
    assert len(made.labels) == 50 and made.stamped.sum() == 10
    plain = Unlearning(sample=0.5, stamped=0.2).patch_set(x, y, [], seed=3)
    assert not plain.stamped.any() and torch.equal(plain.labels, made.labels)
    assert torch.equal(plain.images[~made.stamped], made.images[~made.stamped])
    assert torch.equal(embed(plain.images[made.stamped]), made.images[made.stamped])
    for image, label in zip(plain.images, plain.labels, strict=True):
        assert y[(tell - image.sum()).abs().argmin()] == label


def test_several_triggers_share_the_stamped_images() -> None:
    x, y = images_of(90)
    embeds = [partial(lambda z, v: torch.full_like(z, v), v=i / 10) for i in range(3)]
    made = Unlearning(sample=1.0, stamped=0.5).patch_set(x, y, embeds)
    values = made.images[made.stamped][:, 0, 0, 0]
    assert [int((values == torch.tensor(i / 10)).sum()) for i in range(3)] == [15, 15, 15]


def test_unlearning_takes_the_backdoor_out_and_clean_images_do_not(
    planted: tuple[Planted, mitigations.Embed],
) -> None:
    model, embed = planted
    before = copy.deepcopy(model.state_dict())
    how, data = Unlearning(sample=1.0, stamped=0.5, epochs=20, lr=2e-2), images_of(300)
    patched, control = how.fit(model, embed, *data, seed=1), how.fit(model, None, *data, seed=1)
    after = judged(patched, embed)
    assert after.asr.value < 0.1 and after.accuracy.value > 0.95 and after.true_label.value > 0.9
    assert judged(control, embed).asr.value > 0.9
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), (
        "the model itself must not change"
    )
    again = how.fit(model, embed, *data, seed=1)
    x = data[0][:9]
    assert torch.equal(again(x), patched(x)), "the same seed must give the same model"


def test_unlearning_refuses_impossible_settings() -> None:
    for bad in ({"sample": 0.0}, {"stamped": 1.5}, {"epochs": 0}, {"lr": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Unlearning(**bad)
    with pytest.raises(ValueError, match="one label per image"):
        Unlearning().fit(
            Planted("patch"), None, torch.zeros(4, 1, SIDE, SIDE), torch.zeros(3, dtype=torch.long)
        )


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """A detector that knows both triggers and finds the first that still works; norms say so."""

    def scan(self, model: nn.Module, clean: Tensor, **_: object) -> Scan:
        x = clean[torch.arange(K) != TARGET].flatten(0, 1)
        for kind in ("patch", "lattice"):
            scan = scan_of(kind)
            if (models.predict(model, scan.embed(x, TARGET)) == TARGET).float().mean() > 0.5:
                return scan
        return Scan(**{**scan_of("patch").__dict__, "norms": torch.tensor([5.0, 5.1, 5.2])})


def two_backdoors() -> nn.Module:
    model, other = Planted("patch"), Planted("lattice")
    with torch.no_grad():  # one of the bystanders becomes the second planted unit
        model.hidden.weight[-2], model.hidden.bias[-2] = other.hidden.weight[-1], other.hidden.bias[-1]
        model.head.weight[TARGET, -2] = 100.0
    return model


def test_rounds_find_one_trigger_after_the_other() -> None:
    """MAD cannot flag with three classes that tie, so the rule is MAD or a quarter; the third scan flags
    nothing and ends it.
    """
    model, data = two_backdoors(), images_of(300)
    how = Unlearning(sample=1.0, stamped=0.5, epochs=20, lr=2e-2)
    loop = mitigations.DetectAndPatch(
        detector=Oracle(), rule="mad-or-quarter", unlearning=how, max_rounds=5, n_clean=10
    )
    rounds = loop.fit(model, *data, n_classes=K, seed=0)
    assert [r.patched for r in rounds] == [(TARGET,), (TARGET,), ()]
    assert [r.scan.mask is None for r in rounds[:2]] == [False, True], "the patch first, then the lattice"
    for kind in ("patch", "lattice"):
        embed = mitigations.recovered(scan_of(kind), TARGET)
        assert judged(model, embed).asr.value == 1 and judged(rounds[-1].model, embed).asr.value < 0.1
    assert (
        len(
            mitigations.DetectAndPatch(detector=Oracle(), unlearning=how, max_rounds=1, n_clean=5).fit(
                model, *data, n_classes=K
            )
        )
        == 1
    )


def test_rounds_patch_a_suspected_label_whatever_the_rule_says() -> None:
    loop = mitigations.DetectAndPatch(
        detector=Oracle(), suspected=(1,), max_rounds=2, n_clean=5, unlearning=Unlearning(sample=0.2)
    )
    rounds = loop.fit(Planted("patch"), *images_of(90), n_classes=K)
    assert len(rounds) == 2 and all(1 in r.patched for r in rounds)
    with pytest.raises(ValueError, match="no rule 'guess'"):
        mitigations.DetectAndPatch(detector=Oracle(), rule="guess")


@pytest.mark.parametrize("kind", ["patch", "lattice"])
def test_patching_every_label_needs_no_verdict(kind: str) -> None:
    model, scan = Planted(kind), scan_of(kind)
    how = mitigations.PatchEveryLabel(unlearning=Unlearning(sample=1.0, stamped=0.6, epochs=30, lr=2e-2))
    after = judged(how.fit(model, scan, *images_of(300)), mitigations.recovered(scan, TARGET))
    assert after.asr.value < 0.1 and after.accuracy.value > 0.95


def test_recovered_names_a_class_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="target = 3: the scan has classes 0 to 2"):
        mitigations.recovered(scan_of("patch"), 3)


# --- everything on one classifier


def test_all_repairs_and_scores_on_one_classifier(planted: tuple[Planted, mitigations.Embed]) -> None:
    """Nothing but the two controls may depend on the attacker's trigger: with a useless one, the rest fits
    the same.
    """
    model, embed = planted
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1), model
    )  # the planted classifier behind a convolution that does nothing
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    how, data, held, test = (
        Unlearning(sample=1.0, stamped=0.5, epochs=20, lr=2e-2),
        images_of(300),
        images_of(60, 1),
        images_of(60, 2),
    )
    found = mitigations.repairs(
        model, embed, embed, target=TARGET, trusted=data, held=held, test=test, unlearning=how, seed=1
    )
    assert found["before"].asr.value == 1 and found["unlearned, clean only"].asr.value > 0.9
    for name in ("unlearned, reversed", "unlearned, original", "pruned, last hidden"):
        assert found[name].asr.value < 0.1 and found[name].accuracy.value > 0.95
    blind = mitigations.repairs(
        model, embed, lambda x: x, target=TARGET, trusted=data, held=held, test=test, unlearning=how, seed=1
    )
    for name in ("unlearned, reversed", "pruned, last hidden", "pruned, last conv"):
        assert (
            blind[name].accuracy == found[name].accuracy
            and blind[name].reversed_asr == found[name].reversed_asr
        )

    strip = Strip(overlays=20)
    scores = mitigations.input_scores(
        model, embed, embed, target=TARGET, held=held[0], test=test, strip=strip
    )
    assert scores["activation filter"].auc_all == 1 and scores["activation filter"].fnr.value == 0
    assert scores["S(x)"].auc == 1 and scores["S(x)"].fpr.total == 60
    useless = mitigations.input_scores(
        model, embed, lambda x: x, target=TARGET, held=held[0], test=test, strip=strip
    )
    for name, score in scores.items():
        assert score.fpr == useless[name].fpr, "thresholds come from clean images alone"
        assert useless[name].auc == pytest.approx(0.5)
