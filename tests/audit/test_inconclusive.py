"""A scan that did not finish is no all-clear: its own outcome, exit status and word, wherever a verdict is told."""

import json
import re

import planted
import pytest
import torch

from lib import attacks, cli, train, zoo
from lib.anomaly import judge
from lib.audit import report as reports
from lib.audit.examine import examine
from lib.detectors import B3D, LRED, NeuralCleanse, named

pytestmark = pytest.mark.long

SPEC = zoo.Spec(attack=attacks.group("G-9", "digits"), recipe=train.Recipe(epochs=4, batch_size=64, lr=1e-2))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return zoo.get(SPEC, zoo=tmp_path_factory.mktemp("zoo"))


def test_two_steps_of_a_search_tell_nothing(subject, capsys):
    status = cli.main(["scan", str(subject.path), "-n", "2", "-p", "max_steps", "2", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (
        status == 3 and said["outcome"] == "inconclusive" and not said["attacked"] and said["targets"] == []
    )
    assert said["unreached"] == list(range(10)) and not any(c["reached"] for c in said["classes"])
    assert said["summary"].startswith("inconclusive") and "no backdoor" not in said["summary"]
    assert all(v["outcome"] == "inconclusive" for v in said["verdicts"].values())


def test_the_terminal_and_the_page_name_the_classes(subject, capsys, tmp_path):
    page = tmp_path / "page.html"
    options = ["-n", "2", "-p", "max_steps", "2", "--report", str(page)]
    assert cli.main(["scan", str(subject.path), *options]) == 3
    said = " ".join(capsys.readouterr().out.split())
    for text in (said, page.read_text()):
        assert "nconclusive" in text and "o working trigger was found towards 0, 1, 2" in text
        shown = re.sub('data:image[^"]*', "", text).lower()
        assert "no backdoor found" not in shown and not re.search(r"\bnan\b", shown)


@pytest.mark.parametrize("rule", ["gamma", "gamma-pairs", "calibrated", "mad", "mad-or-quarter"])
def test_every_rule_says_so(subject, rule):
    detector = named("p-red" if rule == "gamma-pairs" else "l-red", max_steps=2)
    result = examine(subject, detector, name="x", n=1, rule=rule)
    assert result.verdict.outcome == "inconclusive" and not result.verdict.attacked


def test_the_same_model_scanned_to_the_end_is_found(subject, capsys):
    assert cli.main(["scan", str(subject.path), "-n", "4", "--rule", "gamma", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (
        said["outcome"] == "attacked"
        and said["unreached"] == []
        and all(c["reached"] for c in said["classes"])
    )


def test_a_clean_model_whose_classes_are_all_reached_is_cleared(tmp_path):
    clean = zoo.get(SPEC, attack=None, zoo=tmp_path)
    result = examine(clean, LRED(), name="l-red", n=4, rule="mad-or-quarter")
    assert result.verdict.unreached == () and result.verdict.outcome in ("nothing found", "attacked")
    assert result.scan.reached.all()


@pytest.mark.parametrize(
    "detector", [NeuralCleanse(max_rounds=1), B3D(budget=60_000, max_rounds=1), LRED(max_steps=1)]
)
def test_a_search_cut_off_at_once_has_reached_nothing(detector):
    scan = detector.scan(planted.model(1), planted.images(6))
    assert not scan.converged.any()
    assert not scan.reached.any() or scan.success[scan.reached].min() >= detector.pi - 0.1


def test_a_class_that_nothing_moves_is_told_by_name():
    class Numb(torch.nn.Module):
        """Four classes; class 2 is never said, whatever is put on an image."""

        def __init__(self):
            super().__init__()
            self.model = planted.model(1)

        def forward(self, x):
            out = self.model(x)
            return out - 1e4 * (torch.arange(out.shape[1]) == 2)

    scan = NeuralCleanse(max_rounds=20).scan(Numb(), planted.images(6))
    assert scan.reached.tolist()[2] is False and scan.success[2] == 0
    verdict = judge(scan, "mad-or-quarter")
    assert 2 not in verdict.targets
    # its norm is judged only as the lower bound that it is, above the median of the others
    middle = scan.norms[scan.reached].median()
    assert (2 in verdict.unreached) == bool(scan.norms[2] <= middle)


def test_what_was_left_out_is_said_of_an_attacked_model_too(subject):
    result = examine(subject, LRED(max_steps=25), name="l-red", n=2, rule="gamma")
    text = reports.to_json(result)
    for t in result.verdict.unreached:
        assert str(t) in json.loads(text)["summary"].split("towards ")[1]
