"""Files of weights and zoo entries that somebody hands in: what is wrong with one is said, with its name."""

import hashlib
import io
import json
import math
import os
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from lib import anomaly, data, detectors, models, train, zoo
from lib.audit import report as reports
from lib.audit.examine import examine
from lib.audit.suspects import AuditError, locate, suspect

pytestmark = pytest.mark.long

QUICK = train.Recipe(epochs=4, batch_size=64, lr=5e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return zoo.get(zoo.Spec(recipe=QUICK), zoo=tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def bare(trained, tmp_path):
    """A file of the weights alone, whose images are to be normalised before they come."""
    path = tmp_path / "bare.safetensors"
    save_file(trained.model[1].state_dict(), path)
    return path


def of_file(path, network="small", dataset="digits", **more):
    return suspect(str(path), network=network, dataset=dataset, **more)


def changed(**tensors):
    """Change the file's tensors: a function of the old one, or None to take one out."""

    def change(path):
        weights = load_file(path)
        for name, how in tensors.items():
            name = name.replace("_at_", ".")
            if how is None:
                del weights[name]
            else:
                weights[name] = how(weights.get(name)).contiguous()
        save_file(weights, path)

    return change


def renamed(prefix, more=()):
    def change(path):
        weights = {prefix + name: tensor for name, tensor in load_file(path).items()}
        save_file(weights | {name: torch.zeros(2) for name in more}, path)

    return change


def spoilt(tensor, where, value):
    tensor = tensor.clone()
    tensor.view(-1)[where] = value
    return tensor


class Payload:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


BAD_FILES = {
    "a value that is no number": (changed(**{"0_at_weight": lambda t: spoilt(t, 3, torch.nan)}), ["1 of 400 values of tensor 0.weight are not finite"]),
    "infinite values": (changed(**{"2_at_bias": lambda t: t / 0}), ["tensor 2.bias are not finite"]),
    "64 bits that 32 cannot hold": (changed(**{"0_at_bias": lambda t: t.double() + 1e300}), ["tensor 0.bias are not finite"]),
    "quantised weights": (changed(**{"0_at_weight": lambda t: (t * 100).to(torch.int8)}), ["tensor 0.weight holds torch.int8", "floats of 16, 32 or 64 bits"]),
    "whole numbers": (changed(**{"0_at_weight": lambda t: t.long()}), ["tensor 0.weight holds torch.int64"]),
    "truth values": (changed(**{"0_at_bias": lambda t: t > 0}), ["tensor 0.bias holds torch.bool"]),
    "complex numbers": (changed(**{"0_at_weight": lambda t: t.to(torch.complex64)}), ["0.weight", "complex64"]),
    "8-bit floats": (changed(**{"0_at_weight": lambda t: t.to(torch.float8_e4m3fn)}), ["tensor 0.weight holds torch.float8"]),
    "another shape": (changed(**{"0_at_weight": lambda t: t[:8]}), ["tensor 0.weight has shape (8, 1, 5, 5), (16, 1, 5, 5) is needed"]),
    "a tensor too few": (changed(**{"0_at_weight": None}), ["it lacks 0.weight"]),
    "a tensor too many": (changed(**{"9_at_weight": lambda t: torch.zeros(2)}), ["it has 9.weight"]),
    "no tensors": (lambda path: save_file({}, path), ["it lacks 0.bias, 0.weight, 2.bias and"]),
    "names of DataParallel": (renamed("module."), ["begin with 'module.'", "removeprefix('module.')"]),
    "names of a compiled model": (renamed("_orig_mod.module."), ["begin with '_orig_mod.module.'", "removeprefix"]),
    "a whole checkpoint": (renamed("state_dict.", more=["optimizer.step", "epoch"]), ["begin with 'state_dict.'", "removeprefix"]),
    "names of DataParallel, with the normalisation": (
        lambda path: save_file({"module.0.mean": torch.zeros(1, 1, 1), "module.0.std": torch.ones(1, 1, 1)} | {f"module.1.{k}": t for k, t in load_file(path).items()}, path),
        ["begin with 'module.':"],
    ),
    "a pickled checkpoint": (lambda path: path.write_bytes(pickle.dumps(Payload(path.parent / "ran"))), ["not a safetensors file", "pickled", "save_file"]),
    "nothing": (lambda path: path.write_bytes(b""), ["not a safetensors file"]),
    "half a file": (lambda path: os.truncate(path, 1000), ["not a safetensors file"]),
    "a header that promises too much": (lambda path: path.write_bytes(b"\xff" * 7 + b"\0" + b"{}"), ["not a safetensors file"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_by_name(bare, kind):
    spoil, words = BAD_FILES[kind]
    spoil(bare)
    with pytest.raises(ValueError) as refused:
        of_file(bare)
    said = str(refused.value)
    assert str(bare) in said and len(said.splitlines()) == 1 and all(word in said for word in words), said
    assert not (bare.parent / "ran").exists()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read(bare, trained, kind):
    save_file({name: tensor.to(kind) for name, tensor in load_file(bare).items()}, bare)
    weight = of_file(bare).model[1][0].weight
    assert weight.dtype == torch.float32 and torch.allclose(weight, trained.model[1][0].weight, rtol=1e-2)


def test_a_running_variance_below_zero_is_refused_and_a_missing_count_is_none(tmp_path):
    path = tmp_path / "vgg.safetensors"
    kind = {"n_classes": 10, "shape": (1, 16, 16)}
    weights = models.network("vgg9", **kind)[1].state_dict()
    fewer = {name: t for name, t in weights.items() if not name.endswith("num_batches_tracked")}
    save_file(fewer, path)
    models.load_weights(path, "vgg9", **kind)
    name = next(name for name in weights if name.endswith("running_var"))
    save_file(weights | {name: -weights[name]}, path)
    with pytest.raises(ValueError, match=f"tensor {name} has a variance below 0"):
        models.load_weights(path, "vgg9", **kind)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(network=None), ["--network and --data"]), (dict(dataset=None), ["--network and --data"]),
        (dict(network="tiny"), ["--network 'tiny'", "small, lenet5"]), (dict(network=""), ["--network ''"]),
        (dict(network="lenet5"), ["does not fit network 'lenet5'"]), (dict(dataset="cifar"), ["no image set 'cifar'"]),
        (dict(mean=[0.5]), ["no --std", "together"]), (dict(std=[0.5]), ["no --mean", "together"]),
        (dict(mean=[0.5, 0.5], std=[0.5]), ["--mean 0.5,0.5: a number from 0 to 1", "1 channels"]),
        (dict(mean=[127.5], std=[127.5]), ["--mean 127.5", "as images in [0, 1] have it"]),
        (dict(mean=[0.5], std=[0.0]), ["--std 0", "above 0"]), (dict(mean=[-0.1], std=[1.0]), ["--mean -0.1"]),
        (dict(mean=[float("nan")], std=[1.0]), ["--mean nan"]), (dict(mean=[], std=[]), ["--mean"]),
    ],
)  # fmt: skip
def test_what_is_said_of_a_file_must_fit(bare, given, words):
    with pytest.raises(ValueError) as refused:
        of_file(bare, **given)
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_a_normalisation_inside_the_file_is_the_only_one(trained, tmp_path):
    whole = trained.path / zoo.WEIGHTS
    of_file(whole)
    with pytest.raises(ValueError, match=r"has its normalisation inside"):
        of_file(whole, mean=[0.5], std=[0.5])
    for value, words in (
        (0.0, "standard deviation of 0"),
        (-1.0, "standard deviation of 0"),
        (torch.nan, "not finite"),
    ):
        weights = load_file(whole) | {"0.std": torch.full((1, 1, 1), value)}
        save_file(weights, tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match=f"tensor 0.std.*{words}|values of tensor 0.std are {words}"):
            of_file(tmp_path / "w.safetensors")


def scanned(subject, rule="calibrated", **more):
    quick = detectors.URED(delta=0.5, max_steps=2)
    return examine(subject, quick, name="u-red", n=1, rule=rule, **more)


def test_a_normalisation_outside_can_be_given_and_its_lack_is_seen(trained, bare):
    mean, std = (t.flatten().tolist() for t in (trained.model[0].mean, trained.model[0].std))
    given, x = of_file(bare, mean=mean, std=std), trained.dataset.test_images
    assert torch.allclose(models.logits(given.model, x), models.logits(trained.model, x), atol=1e-5)
    right = scanned(given)
    assert float(right.facts["clean accuracy"]) == pytest.approx(trained.metrics["cta"], abs=1e-4)
    assert right.facts["normalisation"].startswith("mean [")
    assert right.notes == (
        f"clean accuracy on digits: {100 * trained.metrics['cta']:.1f} %, by chance 11.7 %",
    )
    shown = json.loads(reports.to_json(right))
    assert (
        shown["notes"] == list(right.notes)
        and shown["facts"]["clean accuracy"] == f"{trained.metrics['cta']:.4f}"
    )
    assert right.notes[0][1:] in reports.to_html(right)

    with pytest.raises(
        AuditError, match=r"class 0 has 0 correctly.*clean accuracy on digits: .*--mean, --std"
    ):
        scanned(of_file(bare, mean=[1.0], std=[0.05]).with_model(nn.Sequential(_Upside(), given.model)))

    def told(mean):
        """A wrong normalisation leaves some classes without an image, or does not: both are told alike."""
        try:
            return scanned(of_file(bare, mean=[mean], std=[1.0])).notes[0]
        except AuditError as error:
            return str(error)

    assert any("so low" in said and "--mean, --std" in said for said in map(told, (0.5, 1.0, 2.0)))


def test_other_images_have_their_own_accuracy(trained, tmp_path, monkeypatch):
    """The accuracy on record is of the images that the entry was trained on, and of today's way to measure it."""
    assert suspect(str(trained.path)).facts["clean accuracy"] == f"{trained.metrics['cta']:.4f}"
    monkeypatch.setattr(zoo, "metrics_code", lambda: "another")
    assert "clean accuracy" not in suspect(str(trained.path)).facts


class _Upside(nn.Module):
    def forward(self, x):
        return (1 - x).flip(2)


class Softmax(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).softmax(1)


def test_a_model_that_ends_in_softmax_is_said_to(trained):
    clean, twice = trained.clean(2), Softmax(trained.model)
    for detector in (
        detectors.LRED(max_steps=2),
        detectors.NeuralCleanse(max_rounds=1),
        detectors.USB(max_rounds=1, passes=1),
    ):
        with pytest.raises(ValueError, match=r"gives probabilities, not logits.*leave out.*logarithm"):
            detector.scan(twice, clean)
    with pytest.raises(ValueError, match="gives probabilities"):
        models.of_module(twice)(clean[0])

    class Log(nn.Module):
        def forward(self, x):
            return twice(x).log()

    ours, theirs = (detectors.URED(max_steps=3).scan(model, clean).norms for model in (trained.model, Log()))
    assert torch.allclose(ours, theirs, rtol=1e-4)  # its logarithm is as good as logits


@pytest.mark.parametrize("k", [2, 3, 4])
def test_a_rule_that_is_recommended_can_flag(trained, k):
    """Of every rule that a refusal names, some norms of so many classes are flagged."""
    few = data.load("digits", classes=range(k))
    model = models.network("small", n_classes=k, shape=few.shape)
    subject = trained.__class__(name="few", model=model.eval(), dataset=few)
    for rule, how in anomaly.RULES.items():
        if how.judges == "pairs":
            continue
        if k >= how.least:
            assert anomaly.judge(torch.tensor([1e-3, *([1.0, 1.1, 1.2][: k - 1])]), rule).attacked, rule
        else:
            with pytest.raises(
                AuditError, match=f"rule '{rule}' judges {how.least} classes or more, not {k}: take "
            ) as refused:
                scanned(subject, rule=rule)
            named = str(refused.value).split("take ")[1].split(" or ")
            assert named and all(k >= anomaly.RULES[name].least for name in named)


@pytest.mark.parametrize(
    ("rule", "level", "words"),
    [
        ("calibrated", 1e-4, "above 0.0001"), ("gamma", 0.0, "above 0"), ("gamma", 1.0, "below 1"), ("gamma", -1, "level = -1"),
        ("gamma", float("nan"), "level = nan"), ("mad", 0.05, "its threshold is its own"), ("mood", 0.05, "no rule 'mood'"),
    ],
)  # fmt: skip
def test_a_level_that_can_flag_nothing_is_refused(trained, rule, level, words):
    with pytest.raises(AuditError, match=words):
        scanned(trained, rule=rule, level=level)


def test_a_level_reaches_every_rule(trained):
    found = scanned(trained, level=0.2)
    levels = [v.threshold for v in found.verdicts.values() if anomaly.RULES[v.rule].gives_p]
    assert len(levels) >= 2 and levels == pytest.approx([math.log(0.2)] * len(levels))


def test_square_brackets_in_names_are_shown(trained):
    names = ("[red]", "[/]", "a [b]", *trained.dataset.classes[3:])
    odd = replace(trained, name="[bold]x", dataset=replace(trained.dataset, classes=names))
    screen = Console(width=120, file=io.StringIO(), highlight=False)
    screen.print(reports.to_table(scanned(odd)))
    said = screen.file.getvalue()
    assert all(f"({name})" in said for name in names[:3]) and "[bold]x" in said


@pytest.mark.parametrize(
    "entry", ["", "nobody", "x" * 5000, "a\0b", "*", "[a-z]*", "../..", "/dev/zero", "/", "."]
)
def test_a_name_that_names_nothing(trained, monkeypatch, entry):
    monkeypatch.setenv("REDBOOK_ZOO", str(trained.path.parent))
    with pytest.raises(AuditError) as refused:
        locate(entry)
    assert len(str(refused.value)) < 400


def test_a_name_is_found_by_its_beginning_and_by_nothing_else(trained, monkeypatch):
    home = trained.path.parent
    monkeypatch.setenv("REDBOOK_ZOO", str(home))
    name = trained.path.name
    assert locate(name) == locate(name[:7]) == home / name and locate(str(home / name)) == home / name
    for near in (f"[{name}]", f"{name[:5]}*", f"{name}x", f"/{name[:5]}", name.upper() + "_"):
        with pytest.raises(AuditError, match="no zoo entry"):
            locate(near)
    twin = home / f"{name[:3]}twin"
    shutil.copytree(home / name, twin)
    try:
        with pytest.raises(AuditError, match=f"2 zoo entries begin with '{name[:3]}': "):
            locate(name[:3])
    finally:
        shutil.rmtree(twin)


def entry_json(change):
    """Change the record as if by hand: its own hash is left as it was."""

    def spoil(path):
        file = path / zoo.ENTRY
        record = json.loads(file.read_text())
        change(record)
        file.write_text(json.dumps(record))

    return spoil


def entry_signed(change):
    """Change the record, and sign it anew: only its content is wrong."""

    def spoil(path):
        file = path / zoo.ENTRY
        record = json.loads(file.read_text())
        change(record)
        file.write_text(json.dumps(zoo.signed(record)))

    return spoil


def weights_signed(content):
    def spoil(path):
        (path / zoo.WEIGHTS).write_bytes(content)
        entry_signed(lambda r: r.update(sha256=hashlib.sha256(content).hexdigest()))(path)

    return spoil


def text(content):
    return lambda path: (path / zoo.ENTRY).write_bytes(content)


BAD_ENTRIES = {
    "a list": text(b"[]"), "null": text(b"null"), "a number": text(b"5"), "words": text(b"nothing"), "nothing": text(b""),
    "no UTF-8": text(b"\xff\xfe{}"), "an empty mapping": text(b"{}"), "nested deeply": text(b"[" * 100_000),
    "better metrics": entry_json(lambda r: r["metrics"].update(cta=1.0)), "no signature": entry_json(lambda r: r.pop("signed")),
    "another seed": entry_json(lambda r: r["spec"].update(seed=7)), "a field more": entry_json(lambda r: r.update(note="hand-made")),
    "signed, no metrics": entry_signed(lambda r: r.pop("metrics")), "signed, no accuracy": entry_signed(lambda r: r["metrics"].pop("cta")),
    "signed, an accuracy in words": entry_signed(lambda r: r["metrics"].update(cta="good")), "signed, no spec": entry_signed(lambda r: r.update(spec=None)),
    "signed, a hash that is no text": entry_signed(lambda r: r.update(sha256=5)), "signed, a shape of two": entry_signed(lambda r: r.update(shape=[16, 16])),
    "signed, shapes in words": entry_signed(lambda r: r.update(shape="1x16x16")), "signed, another network": entry_signed(lambda r: r["spec"].update(network="lenet5")),
    "signed, an unknown network": entry_signed(lambda r: r["spec"].update(network="tiny")), "signed, classes of floats": entry_signed(lambda r: r.update(n_classes=10.5)),
    "signed, another number of classes": entry_signed(lambda r: r.update(n_classes=10**9)), "signed, a hash of other data": entry_signed(lambda r: r.update(data_hash="another")),
    "signed, no code of the metrics": entry_signed(lambda r: r.pop("metrics_code")), "signed, what an attack learnt": entry_signed(lambda r: r.update(attack_sha256="0")),
    "signed, an accuracy of 7": entry_signed(lambda r: r["metrics"].update(cta=7.0)),
    "signed, an accuracy that is no number": entry_signed(lambda r: r["metrics"].update(cta=math.nan)),
    "weights cut short": lambda path: os.truncate(path / zoo.WEIGHTS, 100), "no weights": lambda path: (path / zoo.WEIGHTS).unlink(),
    "weights that are a folder": lambda path: ((path / zoo.WEIGHTS).unlink(), (path / zoo.WEIGHTS).mkdir()),
    "a pipe for weights": lambda path: ((path / zoo.WEIGHTS).unlink(), os.mkfifo(path / zoo.WEIGHTS)),
    "signed, unreadable weights": weights_signed(b"nothing"), "signed, no bytes of weights": weights_signed(b""),
    "no record": lambda path: (path / zoo.ENTRY).unlink(), "a record that is a folder": lambda path: ((path / zoo.ENTRY).unlink(), (path / zoo.ENTRY).mkdir()),
    "nothing in it": lambda path: (shutil.rmtree(path), path.mkdir()), "a file": lambda path: (shutil.rmtree(path), path.write_text("an entry")),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ENTRIES)
def test_a_damaged_entry_is_refused_by_a_scan_and_trained_again_by_the_zoo(trained, tmp_path, kind):
    home = tmp_path / "zoo"
    path = home / trained.path.name
    shutil.copytree(trained.path, path)
    BAD_ENTRIES[kind](path)
    with pytest.raises(ValueError) as refused:
        suspect(str(path))
    assert (
        path.name in str(refused.value)
        and len(str(refused.value).splitlines()) == 1
        and len(str(refused.value)) < 700
    )
    with pytest.warns(
        UserWarning, match=rf"zoo entry .*{path.name} is damaged \(.*put aside as .*trained again"
    ):
        again = zoo.get(trained.spec, zoo=home)
    assert again.metrics == trained.metrics and len(list(home.glob("*.corrupt-*"))) == 1
    assert zoo.get(trained.spec, zoo=home).metrics == trained.metrics  # quietly


@pytest.mark.parametrize(
    "option", [dict(network="small"), dict(network="nonsense"), dict(mean=[0.5]), dict(std=[0.5])]
)
def test_what_an_entry_says_itself_is_not_to_be_said_again(trained, option):
    with pytest.raises(
        AuditError, match=rf"--{next(iter(option))} .*zoo entry {trained.path.name} says that itself"
    ):
        suspect(str(trained.path), **option)


def test_an_entry_of_a_folder_that_is_elsewhere_names_the_remedy(trained, tmp_path):
    path = tmp_path / trained.path.name
    shutil.copytree(trained.path, path)
    entry_signed(lambda r: r["spec"].update(dataset="pets"))(path)
    with pytest.raises(
        AuditError, match=r"was trained on pets: no image set 'pets'.*--data names the images"
    ):
        suspect(str(path))
