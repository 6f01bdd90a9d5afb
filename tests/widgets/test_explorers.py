"""The explorers' Python side: what goes into a page comes out as it was, and runs of the reader's can be cancelled."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("anywidget")

from lib import anomaly, prose, widgets
from lib.detectors import LRED
from lib.detectors.lred_annealing import closed_form
from lib.widgets import assets
from lib.widgets.temperature import parse

K = 4
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A linear classifier of 4x4 images whose class k looks at its own four pixels, class 3 at twice the strength."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, K, bias=False))
    weight = torch.zeros(K, 16)
    for k in range(K):
        weight[k, 4 * k : 4 * k + 4] = 8.0 if k == 3 else 4.0
    net[1].weight = nn.Parameter(weight)
    return net


@pytest.fixture(scope="module")
def clean() -> torch.Tensor:
    images = torch.zeros(K, 2, 1, 4, 4)
    for k in range(K):
        images[k, :, 0, k] = 0.5
    return images


@pytest.fixture(scope="module")
def scans(model, clean):
    return widgets.record(
        model, clean, detector=LRED(delta=0.02), schedules={"paper": "paper", "hard": "hard"}
    )


def unpack(explorer: assets.Explorer) -> dict[str, np.ndarray]:
    """What `unpack` of controls.js does, in Python."""
    out = {}
    for name, at in explorer.data["index"].items():
        raw = np.frombuffer(explorer.buffer, at["type"], count=int(np.prod(at["shape"])), offset=at["at"])
        out[name] = (raw.reshape(at["shape"]) * at["scale"] + at["shift"]).astype(float)
    return out


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("low", [0.0, -3.0])
def test_packed_numbers_come_back(bits, low):
    x, exact = RNG.uniform(low, 5, (3, 4)), RNG.normal(size=7)
    x[0, 0] = 0
    index, buffer = assets.pack({"x": x, "exact": exact}, coarse={"x": bits})
    back = unpack(assets.Explorer(data={"index": index}, buffer=buffer))
    assert np.abs(back["x"] - x).max() <= np.abs(x).max() / (2**bits - 2)
    assert back["x"][0, 0] == pytest.approx(0, abs=1e-12)
    assert np.array_equal(back["exact"], exact.astype("f4").astype(float))


def test_explorer_carries_the_norms_and_ends_of_the_scans(scans):
    explorer = widgets.temperature_explorer(scans, target=3, sources=(0,))
    back = unpack(explorer)
    for i, scan in enumerate(scans.values()):
        assert np.array_equal(back[f"{i}.final"], scan.norms.numpy().astype(float))
        assert np.allclose(back[f"{i}.norm"][-1], scan.norms.numpy(), atol=1e-6)
        assert np.allclose(back[f"{i}.w"].sum(-1), 1, atol=1e-3)
        assert np.allclose(
            back[f"{i}.pattern"], scan.pattern.numpy(), atol=float(scan.pattern.abs().max()) / 100
        )
    json.dumps(explorer.data, allow_nan=False)


@pytest.mark.parametrize("name", ["temperature", "weights", "gamma", "attack", "frames"])
def test_script_is_one_module(name):
    text = assets.script(name)
    assert "import " not in text and text.count("export ") == 1 and "export default" in text
    if node := shutil.which("node"):
        done = subprocess.run(
            [node, "--check", "--input-type=module", "-"], input=text, text=True, capture_output=True
        )
        assert not done.returncode, done.stderr


@pytest.mark.parametrize(
    ("text", "at", "want"),
    [
        ("paper", 3, -np.log(0.5)),
        ("0.3", 9, 0.3),
        ("hard", 1, 0.0),
        ("linear:2,10", 5, 1.0),
        ("2, 1, 0", 0, 2.0),
        ("2, 1, 0", 20, 1.5),
        ("2,1,0", 500, 0.0),
    ],
)
def test_schedule_as_typed(text, at, want):
    assert float(parse(text)(torch.tensor([0.5]), at)) == pytest.approx(want)


@pytest.mark.parametrize("text", ["", "warm", "1, two", "2, -1", "1, nan", "linear:2", "-1", "nan", "2, inf"])
def test_schedule_that_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)


class Ear:
    """Collects what an explorer sends to its front end."""

    def __init__(self, explorer: widgets.TemperatureExplorer) -> None:
        self.said: list[dict] = []
        explorer.send = lambda content, buffers=None: self.said.append(content)  # type: ignore[method-assign]

    def ended(self) -> list[str]:
        return [m["text"] for m in self.said if m["type"] == "ended"]


class Slow(nn.Module):
    """A model that waits; `asked` is set at the first image."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.asked = inner, threading.Event()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.set()
        time.sleep(0.01)
        return self.inner(x)


def test_a_run_of_the_readers_is_added_and_equals_a_scan(scans, model, clean):
    explorer = widgets.temperature_explorer(
        scans, target=3, model=model, clean=clean, detector=LRED(delta=0.02)
    )
    ear = Ear(explorer)
    explorer.run("constant:0.5").join()
    assert len(explorer.data["runs"]) == 3 and explorer.running == ""
    want = LRED(delta=0.02, schedule="constant:0.5").scan(model, clean).norms.numpy()
    assert np.array_equal(unpack(explorer)["2.final"], want.astype(float))
    assert ear.said[-1]["show"] == 2


def test_the_second_run_cancels_the_first_and_stop_cancels_any(scans, model, clean):
    slow = Slow(model)
    explorer = widgets.temperature_explorer(
        scans, target=3, model=slow, clean=clean, detector=LRED(delta=1e-4)
    )
    ear = Ear(explorer)
    first = explorer.run("uniform")
    assert slow.asked.wait(20)
    second = explorer.run("hard")
    first.join(20)
    assert not first.is_alive() and second.is_alive()
    assert explorer.running == "hard"
    explorer.stop()
    second.join(20)
    assert not second.is_alive() and explorer.running == ""
    assert len(explorer.data["runs"]) == 2 and ear.ended() == ["Stopped: hard."]


def test_a_refused_schedule_says_what_is_allowed(scans, model, clean):
    explorer = widgets.temperature_explorer(scans, target=3, model=model, clean=clean)
    ear = Ear(explorer)
    assert explorer.run("warm") is None
    assert "allowed are paper, hard, uniform" in ear.ended()[0]


def test_a_run_that_fails_says_so(scans, clean):
    explorer = widgets.temperature_explorer(scans, target=3, model=nn.Flatten(), clean=clean)
    ear = Ear(explorer)
    explorer.run("hard").join()
    assert "ValueError" in ear.ended()[0] and explorer.running == ""


def test_an_explorer_too_large_for_a_page_is_refused(monkeypatch, scans):
    monkeypatch.setattr(assets, "LIMIT", 10_000)
    with pytest.raises(ValueError, match="fit a page"):
        widgets.temperature_explorer(scans, target=3)


def test_scans_without_a_trajectory_are_refused(model, clean):
    with pytest.raises(ValueError, match="record_every"):
        widgets.temperature_explorer({"paper": LRED(delta=0.1).scan(model, clean)}, target=3)


def test_the_pages_mathematics_is_the_packages():
    """Gamma fit, log p-value, its text, and Eq. (8): maths.js against anomaly, prose and lred_annealing."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js on this machine: the browser tests compare the same functions")
    cases = []
    for k in (3, 4, 10, 43):
        for shape in (0.3, 1, 5, 50, 1e3, 1e7):
            for push in (1, 4, 60):
                r = RNG.gamma(shape, size=k) + 1e-12
                r[RNG.integers(k)] *= push
                cases.append(r)
    shares = RNG.integers(0, 9, (20, 9)) / 8
    temperatures = [0.0, 1e-3, 0.1, 0.5, 3.0] * 4
    source = (assets.HERE / "maths.js").read_text()
    program = (
        source + "\nimport fs from 'fs';\nconst d = JSON.parse(fs.readFileSync(0));\n"
        "console.log(JSON.stringify([d.r.map(gammaTest), d.q.map((q, i) => closedForm(q, d.t[i])), d.r.map((r) => formatP(gammaTest(r).logP))]));"
    )
    sent = json.dumps({"r": [c.tolist() for c in cases], "q": shares.tolist(), "t": temperatures})
    done = subprocess.run(
        [node, "--input-type=module", "-e", program], input=sent, text=True, capture_output=True, check=True
    )
    tests, weights, texts = json.loads(done.stdout)
    for r, found, text in zip(cases, tests, texts, strict=True):
        verdict = anomaly.gamma(r)
        assert found["suspect"] == verdict.suspect
        assert found["logP"] == pytest.approx(verdict.score, rel=1e-5, abs=1e-8)
        assert text == prose.p(found["logP"])
    want = closed_form(torch.tensor(shares), torch.tensor(temperatures, dtype=torch.float64))
    assert np.allclose(weights, want.numpy(), atol=1e-9)
