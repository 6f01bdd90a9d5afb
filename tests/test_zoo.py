"""The zoo: trained once, whole or not at all, and the same on any number of threads."""

import json
import multiprocessing
import os
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from lib import anomaly, attacks, classifier, detectors, fingerprint, metrics, models, train, zoo

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.long
quick = train.Recipe(epochs=2, batch_size=64, lr=5e-3)
spec = zoo.Spec(recipe=quick, attack=attacks.group("G-9", "digits"))


def test_the_second_answer_is_the_first(tmp_path):
    first = zoo.get(spec, zoo=tmp_path)
    before = (first.path / "model.safetensors").stat().st_mtime_ns
    again = zoo.get(spec, zoo=tmp_path)
    assert (first.path / "model.safetensors").stat().st_mtime_ns == before
    x = first.dataset.test_images
    assert (
        torch.equal(models.logits(first.model, x), models.logits(again.model, x))
        and first.metrics == again.metrics
    )


def test_everything_that_matters_changes_the_key():
    data = spec.load_data()
    others = [
        zoo.Spec(recipe=quick, attack=attacks.group("G-9", "digits", seed=1)), zoo.Spec(recipe=quick), zoo.Spec(recipe=quick, attack=spec.attack, seed=1),
        zoo.Spec(recipe=train.Recipe(epochs=3, batch_size=64, lr=5e-3), attack=spec.attack), zoo.Spec(recipe=quick, attack=spec.attack, network="lenet5"),
    ]  # fmt: skip
    keys = {zoo.key(spec, data), *(zoo.key(s, data) for s in others)}
    smaller = zoo.Spec(recipe=quick, attack=spec.attack, n_train=500)
    assert len(keys | {zoo.key(smaller, smaller.load_data())}) == len(others) + 2


@pytest.mark.parametrize("file", ["model.safetensors", "entry.json"])
def test_a_damaged_entry_is_noticed_said_and_trained_again(tmp_path, file):
    first = zoo.get(spec, zoo=tmp_path)
    damaged = first.path / file
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="damaged"):
        again = zoo.get(spec, zoo=tmp_path)
    assert again.metrics == first.metrics and list(tmp_path.glob("*.corrupt-*"))


def _ask(folder):
    zoo.get(spec, zoo=folder)


def test_two_processes_train_it_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_ask, [tmp_path, tmp_path])
    entries = [p for p in tmp_path.iterdir() if p.name != "locks"]
    assert len(entries) == 1 and not list(tmp_path.glob("*.partial*"))


def test_the_code_that_trains_is_in_the_key(monkeypatch):
    data = spec.load_data()
    before = zoo.key(spec, data)
    monkeypatch.setattr(classifier, "_trained", lambda *rest: None)
    assert zoo.key(spec, data) != before


def test_changes_are_taken_and_unknown_ones_named(tmp_path):
    same = zoo.get(zoo.Spec(recipe=quick), attack=spec.attack, zoo=tmp_path)
    assert same.spec == spec and same.name == zoo.key(spec, spec.load_data())
    with pytest.raises(ValueError, match=r"no field 'sead'.*allowed are dataset, network"):
        zoo.get(spec, sead=1, zoo=tmp_path)


def test_a_repaired_classifier_is_measured_anew(tmp_path):
    c = zoo.get(spec, zoo=tmp_path)
    assert c.metrics == c.evaluate()
    fresh = models.network("small", n_classes=10, shape=c.dataset.shape)
    other = c.with_model(fresh.eval())
    assert other.metrics["cta"] != c.metrics["cta"] and other.attack is c.attack


def test_a_scan_is_drawn_by_the_seed_of_its_training(tmp_path):
    c = zoo.get(spec, seed=3, zoo=tmp_path)
    detector = detectors.URED(delta=0.3)
    assert torch.equal(c.clean(2), c.clean(2, seed=3)) and not torch.equal(c.clean(2), c.clean(2, seed=4))
    by_hand = detector.scan(c.model, c.clean(2, seed=3))
    assert torch.equal(c.scan(detector, 2).norms, by_hand.norms)
    assert (c.predict(c.clean(2).flatten(0, 1)).view(10, 2) == torch.arange(10)[:, None]).all()


def test_entry_json_is_plain(tmp_path):
    entry = json.loads((zoo.get(spec, zoo=tmp_path).path / "entry.json").read_text())
    assert (
        entry["spec"]["attack"]["name"] == "Global"
        and entry["n_classes"] == 10
        and 0 <= entry["metrics"]["asr"] <= 1
    )


def test_metrics_of_other_code_are_taken_again_and_nothing_is_trained(tmp_path, monkeypatch):
    first = zoo.get(spec, zoo=tmp_path)
    file, weights = first.path / "entry.json", first.path / "model.safetensors"
    old = json.loads(file.read_text())
    stale = {"metrics": {"cta": 0.25, "asr": 0.5, "collateral": None}, "metrics_code": "of another day"}
    file.write_text(json.dumps(zoo.signed(old | stale)))
    before = weights.stat().st_mtime_ns
    monkeypatch.setattr(zoo, "trained", None)  # it must not be asked
    again = zoo.get(spec, zoo=tmp_path)
    assert again.metrics == first.metrics and again.facts == first.facts
    assert json.loads(file.read_text()) == old and weights.stat().st_mtime_ns == before
    assert not list(tmp_path.glob("*.corrupt-*"))


@pytest.mark.parametrize(
    "changed", ["lib.metrics.asr", "lib.models.ask.predict", "lib.classifier.Classifier.evaluate"]
)
def test_the_print_of_the_metrics_knows_what_they_are_made_by(monkeypatch, changed):
    """The functions behind CTA and ASR are in files of the print, or in it themselves."""
    reached = fingerprint.closure([Path(metrics.__file__), Path(models.ask.__file__)])
    module, name = changed.rsplit(".", 1)
    if module in sys.modules:
        assert Path(sys.modules[module].__file__).resolve() in reached
    else:
        before = zoo.metrics_code()
        monkeypatch.setattr(classifier.Classifier, name, lambda self: {"cta": 1.0})
        assert zoo.metrics_code() != before


def test_a_zoo_that_cannot_be_written_names_the_remedy(tmp_path):
    (tmp_path / "a_file").write_text("no folder")
    with pytest.raises(zoo.ZooError, match=r"the zoo .*a_file/zoo cannot be written.*REDBOOK_ZOO"):
        zoo.get(spec, zoo=tmp_path / "a_file" / "zoo")


@pytest.mark.data
@pytest.mark.parametrize(
    ("n_train", "clean_seeds"), [(20_000, 1), pytest.param(None, 3, marks=pytest.mark.slow)]
)
def test_mnist_local_chessboard_is_caught(n_train, clean_seeds):
    """The paper's MNIST attack on real files: p < 1e-3 and target 8 (Table 4 reports underflow).

    On the first of five seeds with which the attack is learnt: in ten epochs some are not.
    """
    root = Path(os.environ.get("REDBOOK_DATA", ROOT / "data" / "cache"))
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip("no MNIST under REDBOOK_DATA")
    spec = zoo.Spec(dataset="mnist", network="lenet5", recipe="laptop", n_train=n_train)
    tried = (zoo.get(spec, attack=attacks.group("paper", "mnist"), seed=seed) for seed in range(5))
    c = next(c for c in tried if c.metrics["asr"] > 0.9)
    assert c.metrics["cta"] > (0.97 if n_train else 0.98)
    verdict = anomaly.gamma(c.scan(detectors.LRED()).statistics)
    assert verdict.targets == (8,) and verdict.p_value < 1e-3
    flagged = []
    for s in range(clean_seeds):
        clean = zoo.get(spec, seed=s)
        judged = anomaly.calibrated(clean.scan(detectors.LRED()).statistics)
        print(f"clean seed {s}: calibrated p = {judged.p_value:.3g}")
        flagged.append(judged.attacked)
    assert sum(flagged) <= 1


@pytest.mark.parametrize("attack", [None, attacks.InputAware(target=1), attacks.Latent(target=1)])
def test_a_small_classifier_does_not_depend_on_the_number_of_threads(tmp_path, attack):
    spec = zoo.Spec(attack=attack, recipe=train.Recipe(epochs=1, batch_size=128, lr=2e-2))
    before, weights = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            weights.append(zoo.get(spec, zoo=tmp_path / str(threads)).model.state_dict())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_every_field_of_a_spec_is_in_its_description():
    assert zoo.Spec().describe().keys() == {f.name for f in fields(zoo.Spec)}


def test_a_classifier_is_trained_and_scanned_by_the_seeds_it_is_told(tmp_path):
    c = zoo.get(recipe=quick, seed=3, zoo=tmp_path)
    x, y = c.dataset.train
    exact = x.double()  # as rounded sums do not depend on the processor
    like = {"mean": exact.mean((0, 2, 3)).tolist(), "std": exact.std((0, 2, 3)).clamp_min(1e-3).tolist()}
    net = models.network("small", n_classes=10, shape=c.dataset.shape, seed=3, **like)
    by_hand = train.fit(net, x, y, quick, seed=3).state_dict()
    assert all(torch.equal(by_hand[name], value) for name, value in c.model.state_dict().items())
    n, how = 1, detectors.URED(max_steps=2)
    other = how.scan(c.model, c.clean(n, seed=4))
    assert torch.equal(c.scan(how, n, seed=4).pattern, other.pattern)
    assert not torch.equal(c.scan(how, n).pattern, other.pattern)
