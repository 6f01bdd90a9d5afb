"""The command line: exit statuses, pure JSON, one clear line for bad input, and nothing written by it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lib import __version__, cli
from lib import zoo as zoos
from lib.experiments.tables import works

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.long


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


@pytest.mark.parametrize(
    "command", [[], ["build"], ["run"], ["claims"], ["train"], ["scan"], ["sweep"], ["bench"]]
)
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
    assert code in (0, 1, 3) and "needs none" in found["facts"]["clean images per class"]
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
        (["train", "--device", "tpu"], ("tpu", "auto, cpu, cuda")),
        (["train", "--device", "meta"], ("--device 'meta'", "auto, cpu, cuda")),
        (["train", "--device", ""], ("--device ''", "auto, cpu, cuda")),
        (["train", "--device", "cuda:99"], ("--device 'cuda:99'", "not on this machine")),
        (["bench", "--device", "hpu"], ("--device 'hpu'", "auto, cpu, cuda")),
        (["train", "--recipe", ""], ("no recipe ''", "smoke")),
        (["train", "--seed", "x"], ("--seed", "'x'")),
        (["train", "--seed", "-1"], ("--seed", "'-1'")),
        (
            ["train", "--seed", "9223372036854775808"],
            ("--seed", "'9223372036854775808'", "9223372036854775807"),
        ),
        (["train", "--seed", "1.5"], ("--seed", "'1.5'")),
        (["bench", "-n", "0"], ("-n", "'0'")),
        (["bench", "-n", "40"], ("n = 40", "1 to 39")),
        (["bench", "-n", str(10**30)], ("n = 1000000", "1 to 39")),
        (["bench", "--seconds", "inf"], ("--seconds", "'inf'", "3600")),
        (["bench", "--seconds", "nan"], ("--seconds", "'nan'")),
        (["bench", "--network", "tiny"], ("tiny", "small")),
        (["sweep", "data/grids/digits.yml", "--workers", "0"], ("--workers", "'0'")),
        (["sweep", "data/grids/digits.yml", "--device", "meta"], ("--device 'meta'",)),
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
        (["-p", "schedule", "linear:1"], ("schedule = 'linear:1'", "linear:T0,steps")),
        (["-p", "max_steps", "inf"], ("max_steps = 'inf'", "whole number")),
        (["-p", "max_steps", "1e30"], ("max_steps = '1e30'",)),
        (["-p", "max_steps", "\u0663"], ("max_steps",)),
        (["-p", "pi", "nan"], ("pi = 'nan'",)),
        (["-p", "delta", "inf"], ("delta",)),
        (["-p", "delta", "1e300"], ("delta", "in size")),
        (["--detector", "surrogate-red", "-p", "weight_rate", "-1"], ("weight_rate", "above 0")),
        (["--detector", "neural-cleanse", "-p", "lr", "inf"], ("lr = inf", "finite")),
        (["--detector", "neural-cleanse", "-p", "betas", "0.5"], ("betas", "a pair of numbers")),
        (["--detector", "neural-cleanse", "-p", "cost_waits", "2"], ("cost_waits",)),
        (["--detector", "nc-pears"], ("nc-pears", "nc-pairs")),
        (["--network", "small"], ("--network small", "says that itself")),
        (["--mean", "0.5", "--std", "0.5"], ("--mean", "says that itself")),
        (["--mean", "a,b"], ("--mean 'a,b'", "0.5,0.5,0.5")),
        (["--level", "0"], ("level = 0.0", "above 0.0001")),
        (["--level", "x"], ("--level", "'x'")),
        (["--level", "0.1", "--rule", "mad"], ("level = 0.1", "mad")),
        (["--data", "digitz"], ("digitz",)),
        (["--report", "no/such/folder/r.html"], ("no/such/folder",)),
        (["--report", ""], ("--report", "file's name")),
        (["--report", "/"], ("--report '/'", "file's name")),
        (["--report", "/dev/null"], ("--report '/dev/null'", "file's name")),
        (["--report", "x" * 250], ("--report 'xxx", "too long")),
        (["--save", "/proc/s.safetensors"], ("--save '/proc/s.safetensors'",)),
        (["--save", "tests/test_cli.py/s"], ("--save 'tests/test_cli.py/s'", "no folder")),
        (["--report", "r.html", "--save", "r.html"], ("--report r.html", "two files")),
        (["--save", "no/such/folder/s.safetensors"], ("no/such/folder",)),
    ],
)
def test_bad_scan_settings(capsys, options, words):
    entry = trained(capsys, "C-0")["entry"]
    code, out, err = call(capsys, "scan", entry, "--device", "cpu", *options)
    assert code == 2 and not out
    assert "Traceback" not in err and all(word in err for word in words)


def test_the_version(capsys):
    assert call(capsys, "--version") == (0, f"redbook {__version__}\n", "")


def test_an_output_takes_the_place_of_no_input(capsys, zoo, tmp_path):
    entry = zoo / trained(capsys, "C-0")["entry"]
    weights, link = tmp_path / "model.safetensors", tmp_path / "link"
    shutil.copy(entry / "model.safetensors", weights)
    link.symlink_to(weights)
    (tmp_path / "hard").hardlink_to(weights)
    before = {file: file.read_bytes() for file in (weights, *entry.iterdir())}
    of_file = [str(weights), "--network", "small", "--data", "digits"]
    for output in (weights, link, tmp_path / "hard", tmp_path / "x" / ".." / "model.safetensors"):
        (tmp_path / "x").mkdir(exist_ok=True)
        for option in ("--report", "--save"):
            code, out, err = call(capsys, "scan", *of_file, option, str(output))
            assert code == 2 and not out and f"{option} " in err and "would be overwritten" in err
    for file in entry.iterdir():
        code, out, err = call(capsys, "scan", entry.name, "--report", str(file))
        assert code == 2 and not out and "would be overwritten" in err
    grid = tmp_path / "grid.yml"
    grid.write_text("classifiers: [{groups: [C-0]}]\ndetectors: [{name: u-red, n: 1}]\n")
    before[grid] = grid.read_bytes()
    code, out, err = call(capsys, "sweep", str(grid), "--out", str(grid))
    assert code == 2 and not out and "--out" in err and "would be overwritten" in err
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize("out", ["", "/", ".", "no/such/folder/o.parquet", "README.md/o.parquet", "x" * 250])
def test_a_sweep_with_no_place_for_its_table_does_not_begin(capsys, monkeypatch, tmp_path, out):
    monkeypatch.chdir(ROOT)
    code, said, err = call(capsys, "sweep", "data/grids/digits.yml", "--out", out)
    assert code == 2 and not said and len(err.splitlines()) == 1 and "--out" in err


def test_a_report_that_cannot_be_written_at_the_end_is_said_with_its_name(capsys, monkeypatch, tmp_path):
    import errno

    def full(*where):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lib.audit.report.write", full)
    page = str(tmp_path / "r.html")
    code, out, err = call(
        capsys, "scan", trained(capsys, "C-0")["entry"], "--report", page, "--device", "cpu"
    )
    assert (
        code == 2
        and "no backdoor found" in out
        and err == f"redbook: --report {page}: No space left on device\n"
    )


def test_a_file_whose_images_are_normalised_outside(capsys, zoo, tmp_path):
    from safetensors.torch import load_file, save_file

    whole = load_file(zoo / trained(capsys, "C-0")["entry"] / "model.safetensors")
    bare = tmp_path / "bare.safetensors"
    save_file({name[2:]: tensor for name, tensor in whole.items() if name.startswith("1.")}, bare)
    numbers = {f"--{name}": str(whole[f"0.{name}"].item()) for name in ("mean", "std")}
    given = [word for pair in numbers.items() for word in pair]
    argv = [
        "scan",
        str(bare),
        "--network",
        "small",
        "--data",
        "digits",
        "--device",
        "cpu",
        "-p",
        "max_steps",
        "2",
    ]
    _, with_it, _ = call(capsys, *argv, *given)
    _, without, _ = call(capsys, *argv)
    said = [
        next(line for line in out.splitlines() if line.startswith("clean accuracy"))
        for out in (with_it, without)
    ]
    assert all("on digits" in line and "by chance" in line for line in said) and said[0] > said[1]
    level = ["--rule", "gamma", "--level", "0.999", "--json"]
    assert json.loads(call(capsys, *argv, *level)[1])["verdicts"]["gamma"]["threshold"] == pytest.approx(
        -0.0010005
    )


def test_an_unexpected_error_is_no_verdict(capsys, monkeypatch):
    def broken(*args, **options):
        raise TypeError("a bug")

    monkeypatch.setattr("lib.audit.suspects.locate", broken)
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
    signed = zoos.signed(entry | {"data_hash": "another"})
    (changed / "entry.json").write_text(json.dumps(signed))
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
    assert code == 2 and "no field 'colour': allowed are dataset" in said
