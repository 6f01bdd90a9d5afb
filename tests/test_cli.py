"""The command line: exit statuses, pure JSON, one clear line for bad input, and nothing written by it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lib import cli
from lib.experiments.tables import works

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def zoo(tmp_path_factory, monkeypatch) -> Path:
    """One zoo for all tests of this file, so that each classifier is trained once."""
    home = tmp_path_factory.getbasetemp() / "zoo"
    monkeypatch.setenv("REDBOOK_ZOO", str(home))
    return home


def call(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main(list(argv))
    return code, *capsys.readouterr()


def trained(capsys, attack: str) -> dict:
    code, out, _ = call(capsys, "train", "--attack", attack, "--json", "--device", "cpu")
    assert code == 0
    return json.loads(out)


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys, lib.cli; sys.exit(bool({'torch', 'papermill', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("command", [[], ["build"], ["run"], ["train"], ["scan"], ["sweep"], ["bench"]])
def test_help(capsys, command):
    code, out, err = call(capsys, *command, "--help")
    assert code == 0 and "Usage: redbook" in out and not err


def test_train_prints_accuracy_success_and_name(capsys, zoo):
    code, out, _ = call(capsys, "train", "--attack", "G-9", "--device", "cpu")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (
        code == 0
        and set(lines) >= {"CTA", "ASR", "entry"}
        and (zoo / lines["entry"] / "entry.json").is_file()
    )
    assert trained(capsys, "G-9")["entry"] == lines["entry"]  # the second time it comes from the zoo


def test_scan_finds_the_backdoor_and_says_so_in_its_exit_status(capsys, tmp_path):
    entry = trained(capsys, "G-9")["entry"]
    page = tmp_path / "scan.html"
    code, out, _ = call(capsys, "scan", entry[:8], "--json", "--report", str(page), "--device", "cpu")
    found = json.loads(out)
    assert code == 1 and found["attacked"] and found["targets"] == [9]
    assert [row["class"] for row in found["classes"] if row["flagged"]] == [9]
    assert set(found["verdicts"]) == {"gamma", "calibrated", "mad", "mad-or-quarter"}
    html = page.read_text()
    assert (
        html.count("<figure>") == 10
        and "http" not in html.replace("http-equiv", "")
        and "<script" not in html
    )

    code, out, err = call(capsys, "scan", entry, "--device", "cpu")
    assert code == 1 and "target 9" in out and "of clean classifiers" in out and not err


def test_presets_are_detectors_of_the_command_line_and_a_scan_can_be_kept(capsys, tmp_path):
    from lib.detectors import Scan

    entry, kept = trained(capsys, "G-9")["entry"], tmp_path / "scan.safetensors"
    options = [
        "--detector",
        "nc-pairs",
        "-p",
        "max_rounds",
        "4",
        "-n",
        "2",
        "--rule",
        "gamma-pairs",
        "--json",
    ]
    code, out, _ = call(capsys, "scan", entry, *options, "--save", str(kept), "--device", "cpu")
    found, scan = json.loads(out), Scan.load(kept)
    assert code in (0, 1) and found["detector"] == "nc-pairs" and found["rule"] == "gamma-pairs"
    assert found["settings"]["mode"] == "pairs" == scan.settings["mode"] and scan.pair_norms is not None
    assert [row["norm"] for row in found["classes"]] == pytest.approx(scan.norms.tolist())


def test_a_detector_without_clean_images_says_so(capsys):
    entry = trained(capsys, "C-0")["entry"]
    budget = ["-p", "budget", "40000", "-p", "image_budget", "20000", "-p", "images", "2", "-p", "check", "5"]
    code, out, _ = call(capsys, "scan", entry, "--detector", "b3dss", *budget, "--json", "--device", "cpu")
    found = json.loads(out)
    assert code in (0, 1) and "needs none" in found["facts"]["clean images per class"]
    assert 0 < found["cost"]["queries"] <= 40_000


def test_scan_of_a_clean_classifier_and_of_a_file_of_weights(capsys, zoo):
    entry = trained(capsys, "C-0")["entry"]
    code, out, _ = call(capsys, "scan", entry, "--json", "--device", "cpu")
    assert code == 0 and not json.loads(out)["targets"]
    weights = str(zoo / entry / "model.safetensors")
    code, again, _ = call(
        capsys, "scan", weights, "--network", "small", "--data", "digits", "--json", "--device", "cpu"
    )
    assert code == 0 and json.loads(again)["classes"] == json.loads(out)["classes"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--data", "digitz"], ("digitz", "digits")),
        (["train", "--network", "tiny"], ("tiny", "small")),
        (["train", "--attack", "G-2"], ("G-2", "G-3")),
        (["train", "--recipe", "slow"], ("slow", "smoke")),
        (["train", "--device", "tpu"], ("tpu",)),
        (["scan", "nobody"], ("nobody", "redbook train")),
        (["scan", "README.md", "--network", "small"], ("README.md", "--data")),
        (
            ["scan", "README.md", "--network", "small", "--data", "digits"],
            ("README.md", "not a safetensors file"),
        ),
        (["sweep", "no.yml"], ("no.yml",)),
        (["sweep", "data/grids/digits.yml", "--device", "tpu"], ("tpu",)),
        (["build", "--profile", "nope"], ("nope", "smoke")),
        (["build", "--only", "77"], ("77",)),
        (["run", "notebooks/none.ipynb"], ("none.ipynb",)),
        (["run", "README.md"], ("README.md", "not a notebook")),
        (["run", "notebooks/none.ipynb", "-p", "n_seeds"], ("n_seeds",)),
        (["fly"], ("fly",)),
        (["scan"], ("entry",)),
    ],
)
def test_bad_input_is_one_clear_message_on_stderr(capsys, monkeypatch, argv, words):
    monkeypatch.chdir(ROOT)
    code, out, err = call(capsys, *argv)
    assert code == 2 and not out
    assert "Traceback" not in err and all(word in err for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--detector", "magic"], ("magic", "l-red")),
        (["--rule", "eye"], ("eye", "gamma", "mad-or-quarter")),
        (["--rule", "gamma-pairs"], ("gamma-pairs", "l-red does not give them")),
        (["-n", "0"], ("n = 0",)),
        (["-n", "9999"], ("9999",)),
        (["-p", "deltta", "1"], ("deltta", "delta")),
        (["-p", "delta", "x"], ("delta", "'x'")),
        (["-p", "delta", "-1"], ("delta",)),
        (["--report", "no/such/folder/r.html"], ("no/such/folder",)),
        (["--save", "no/such/folder/s.safetensors"], ("no/such/folder",)),
    ],
)
def test_bad_scan_settings(capsys, options, words):
    entry = trained(capsys, "C-0")["entry"]
    code, out, err = call(capsys, "scan", entry, "--device", "cpu", *options)
    assert code == 2 and not out
    assert "Traceback" not in err and all(word in err for word in words)


def test_an_unexpected_error_is_no_verdict(capsys, monkeypatch):
    def broken(*args, **options):
        raise TypeError("a bug")

    monkeypatch.setattr("lib.audit.suspects.suspect", broken)
    code, out, err = call(capsys, "scan", "anything")
    assert code not in (0, 1, 2) and not out and "a bug" in err


def test_an_entry_put_aside_does_not_hide_the_one_that_took_its_place(capsys, zoo):
    name = trained(capsys, "C-0")["entry"]
    aside = zoo / f"{name}.corrupt-1"
    shutil.copytree(zoo / name, aside)
    try:
        assert call(capsys, "scan", name, "--json")[0] == 0
    finally:
        shutil.rmtree(aside)


def test_an_entry_is_refused_when_its_images_have_changed(capsys, zoo, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(zoo / trained(capsys, "C-0")["entry"], changed)
    entry = json.loads((changed / "entry.json").read_text())
    (changed / "entry.json").write_text(json.dumps(entry | {"data_hash": "another"}))
    code, out, err = call(capsys, "scan", str(changed))
    assert code == 2 and not out and "is not what it was" in err and len(err.splitlines()) == 1


def test_damaged_or_pickled_weights_are_refused(capsys, zoo, tmp_path):
    import torch

    entry = trained(capsys, "C-0")["entry"]
    pickled = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, pickled)
    code, _, err = call(capsys, "scan", str(pickled), "--network", "small", "--data", "digits")
    assert code == 2 and "pickled" in err
    code, _, err = call(
        capsys, "scan", str(zoo / entry / "model.safetensors"), "--network", "lenet5", "--data", "digits"
    )
    assert code == 2 and "does not fit network 'lenet5'" in err


def test_sweep_resumes(capsys, tmp_path):
    grid, out = tmp_path / "grid.yml", tmp_path / "rows.parquet"
    grid.write_text("classifiers: [{groups: [C-0, G-9]}]\ndetectors: [{name: u-red, n: 1}]\n")
    code, said, _ = call(capsys, "sweep", str(grid), "--out", str(out), "--device", "cpu")
    assert code == 0 and "2 rows" in said
    before = out.stat().st_size
    code, said, _ = call(capsys, "sweep", str(grid), "--out", str(out), "--device", "cpu")
    assert code == 0 and "2 rows" in said and out.stat().st_size == before


def test_run_takes_pairs_and_equations():
    assert cli._joined(["run", "x", "-p", "a", "1", "-p", "b=2", "-o", "y"]) == [
        "run",
        "x",
        "-p",
        "a=1",
        "-p",
        "b=2",
        "-o",
        "y",
    ]
    assert cli._joined(["run", "-p", "lonely"]) == ["run", "-p", "lonely"]


def test_a_sweep_of_attacks_makes_one_table_of_all_sets(capsys, tmp_path):
    grid, out = tmp_path / "grid.yml", tmp_path / "attacks.parquet"
    grid.write_text("attacks: [{names: [global]}, {names: [cross], seeds: [1]}]\n")
    code, said, _ = call(capsys, "sweep", str(grid), "--out", str(out), "--device", "cpu")
    table = pd.read_parquet(out)
    assert code == 0 and "global" in said and f"{works(table).sum()} of 2 classifiers" in said
    assert table[["attack", "seed"]].values.tolist() == [["global", 0], ["cross", 1]]
    assert table.asr.between(0, 1).all() and table.commit.notna().all()
    grid.write_text("attacks: [{names: [global], colour: red}]\n")
    code, _, said = call(capsys, "sweep", str(grid), "--out", str(out))
    assert code == 2 and "colour" in said and "allowed fields are classes, dataset" in said
