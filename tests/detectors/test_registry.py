"""What the register promises (README.md): one line in it, and a detector is known wherever detectors are."""

import json
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import torch
from safetensors.torch import save_file

from lib import cli, models
from lib.detectors import DETECTORS, Detector, Needs, Scan, from_words
from lib.detectors.base import Run
from lib.detectors.scan import Found, Problems, assemble
from lib.experiments import grids, sweep
from lib.settings import number

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Clairvoyant(Detector):
    """It asks the model nothing and says class 3."""

    size: float = number(0.1, above=0)
    needs = Needs(access="answers", images=False)
    norm_name = "distance of the stars"

    def search(self, run: Run) -> Scan:
        k, *shape = len(run.clean), *run.clean.shape[2:]
        norms, sure = torch.linspace(1, 1.1, k), torch.ones(k)
        norms[3] = self.size
        found = Found(
            norms=norms, pattern=torch.zeros(k, *shape), success=sure, reached=sure > 0, converged=sure > 0
        )
        return assemble(self, Problems.all_to_one(k), found, run.cost)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(DETECTORS, "clair-voyant", Clairvoyant)


def test_the_command_line_scans_with_it_and_lists_it(tmp_path, capsys):
    weights = models.network("small", n_classes=10, shape=(1, 16, 16)).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    scan = ["scan", str(tmp_path / "model.safetensors"), "--network", "small", "--data", "digits"]
    code = cli.main([*scan, "--device", "cpu", "--detector", "clairvoyant", "-p", "size", "0.05", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 1 and found["targets"] == [3] and found["norm"] == "distance of the stars"
    assert cli.main([*scan, "--device", "cpu", "--detector", "clairvoyant", "-p", "size", "-1"]) == 2
    assert "size = -1" in capsys.readouterr().err
    assert cli.main([*scan, "--device", "cpu", "--detector", "clare"]) == 2
    assert "clair-voyant" in capsys.readouterr().err


@pytest.mark.long
def test_a_sweeps_grid_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("REDBOOK_ZOO", str(tmp_path / "zoo"))
    grid = tmp_path / "grid.yml"
    grid.write_text(
        "classifiers: [{dataset: digits, groups: [C-0], n_train: 100}]\n"
        "detectors: [{name: clair-voyant, settings: {size: 0.2}}]\n"
    )
    (task,) = grids.read_grid(grid)
    row = sweep.table_of([task]).iloc[0]
    assert row["detector"] == "clair-voyant" and row["norms"][3] == pytest.approx(0.2)
    assert row["n"] == 0 and json.loads(row["settings"]) == {"size": 0.2}
    grid.write_text(grid.read_text().replace("0.2", "-1"))
    with pytest.raises(grids.GridError, match="size = -1"):
        grids.read_grid(grid)


def test_the_comparison_chapter_has_a_line_for_it(monkeypatch):
    """The chapter's own cells, up to its table of detectors."""
    monkeypatch.chdir(ROOT)
    cells = nbformat.read("notebooks/11_comparison.ipynb", as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    last = next(i for i, source in enumerate(code) if "DETECTORS" in source)
    *before, expression = "\n".join(code[: last + 1]).splitlines()
    names = {}
    exec("\n".join(before), names)
    table = eval(expression, names)
    assert set(DETECTORS) <= set(table.index)
    assert table.loc["clair-voyant"].tolist() == [
        "answers", "none", "distance of the stars", "not in the table yet"
    ]  # fmt: skip
    measured = table[table["images per class"] != "not in the table yet"]
    assert set(measured.index) == set(names["rows"]["detector"])


def test_names_may_leave_out_dashes():
    assert from_words("ClairVoyant") == ("clair-voyant", Clairvoyant())
